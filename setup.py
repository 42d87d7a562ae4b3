"""What pyproject.toml cannot say of the package: dashboards/ inside it, the native extension, and a README without
links to files that no package index has.
"""

from __future__ import annotations

import re
import shutil
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
DASHBOARDS = HERE / "dashboards"
DASHBOARD_SUFFIXES = {".json", ".yml", ".yaml"}
# A free-threaded Python has no stable ABI: there the extension, and so the wheel, is for that version alone.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")


class BuildPy(build_py):
    """Also lays the dashboards and rules of dashboards/ into the wheel, as harness/dashboards.

    An editable install has none of it: there the harness reads the checkout's own folder.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for path in sorted(DASHBOARDS.rglob("*")):
            if path.suffix in DASHBOARD_SUFFIXES:
                target = Path(self.build_lib, "harness", "dashboards", path.relative_to(DASHBOARDS))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def index_page(readme: str) -> str:
    """README for a package index: without images, and without the links, whose targets are files of the repository."""
    without_images = re.sub(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n+", "", readme, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)[^)]*\)", r"\1", without_images)


setup(
    long_description=index_page((HERE / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    cmdclass={"build_py": BuildPy},
    # Left out where there is no compiler or no Python.h: the tier then does everything block by block.
    ext_modules=[Extension("kvtier.fs._native", ["kvtier/fs/_native.c"], optional=True, py_limited_api=LIMITED_API)],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
