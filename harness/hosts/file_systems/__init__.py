"""Network file systems that several hosts on one machine share, one module each."""
