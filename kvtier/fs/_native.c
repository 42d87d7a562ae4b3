/* The native extension: many blocks in one call, without Python's lock, as long as nothing unusual happens.
 *
 * `block_io.py` does the same block by block, and it alone interprets errors and damage. A block that meets anything
 * unusual is left as it was and reported as not done; `block_io.py` then repeats it. So an error here only undoes what
 * was begun.
 *
 * Reason: each system call from Python releases the lock and takes it back. With many threads that costs more than the
 * call itself, and all other threads wait for what one does with the lock (docs/speed.md has the figures). The checksum
 * is the xxhash package's own, called by its address.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <pyconfig.h> /* Py_GIL_DISABLED */
#ifndef Py_GIL_DISABLED /* a free-threaded Python has no stable ABI: there the module is built for that version alone */
#define Py_LIMITED_API 0x030B0000 /* one binary for Python 3.11 and later (setup.py names the wheel so) */
#endif
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define VERSION 2 /* of the functions' arguments: `native.py` uses no other, such as one built before an update */
#define SYS_CACHESTAT 451 /* on every architecture; glibc has no function for it */
#define UNMARKED 2
#define NOT_DONE (-1)
#define PUBLISHED 1
#define THERE_ALREADY 2

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "a trailer is little-endian"
#endif
/* The trailer, as `trailer.py` lays it out; its own checksum stands at the end and is of all before it. */
#define SAME_BYTES 24 /* magic, version, algorithm, length of the key, size of the block: the same for all of a call */
#define KEY_LENGTH_AT 12
#define CHECKSUM_AT 24
#define KEY_AT 64
#define KEY_BYTES_MAX 64
#define HEADER_BYTES 192
#define TRAILER_BYTES (HEADER_BYTES + 8)

typedef uint64_t (*Checksum)(const void *, size_t);

typedef struct {
    const char *path;
    Py_buffer view; /* the block */
    const char *key;
    Py_ssize_t key_bytes;
    char *page; /* its trailer */
    long long result;
} Block;

typedef struct {
    size_t page_bytes;
    int flags, file_mode, dir_mode;
    int by_use;          /* first loads go past the page cache; `UNMARKED`: no read sets the atime that shows them */
    const char *trailer; /* of one of the blocks: the others differ in key and checksums */
    Checksum checksum;   /* NULL: nothing is verified */
} How;

static uint64_t number_at(const char *place) {
    uint64_t number;
    memcpy(&number, place, sizeof number);
    return number;
}

static void put_number(char *place, uint64_t number) { memcpy(place, &number, sizeof number); }

static void seal(const Block *block, const How *how) {
    memcpy(block->page, how->trailer, HEADER_BYTES);
    memcpy(block->page + KEY_AT, block->key, (size_t)block->key_bytes);
    put_number(block->page + CHECKSUM_AT, how->checksum(block->view.buf, (size_t)block->view.len));
    put_number(block->page + HEADER_BYTES, how->checksum(block->page, HEADER_BYTES));
}

static int is_right(const Block *block, const How *how) {
    return memcmp(block->page, how->trailer, SAME_BYTES) == 0 &&
           memcmp(block->page + KEY_AT, block->key, (size_t)block->key_bytes) == 0 &&
           number_at(block->page + HEADER_BYTES) == how->checksum(block->page, HEADER_BYTES) &&
           number_at(block->page + CHECKSUM_AT) == how->checksum(block->view.buf, (size_t)block->view.len);
}

static int open_no_links(const char *path, int flags) {
    struct open_how how = {.flags = (unsigned)flags, .resolve = RESOLVE_NO_SYMLINKS};
    return (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
}

/* Whether all bytes of the file are in the page cache (Linux 6.5, and only for a user who may write the file). */
static int is_cached(int descriptor, ssize_t size) {
    struct {
        uint64_t offset, length;
    } range = {0, (uint64_t)size};
    struct {
        uint64_t cached, dirty, writeback, evicted, recently_evicted;
    } pages;
    return syscall(SYS_CACHESTAT, descriptor, &range, &pages, 0) == 0 &&
           pages.cached * (uint64_t)sysconf(_SC_PAGESIZE) >= (uint64_t)size;
}

static int is_after(const struct timespec *one, const struct timespec *other) {
    return one->tv_sec != other->tv_sec ? one->tv_sec > other->tv_sec : one->tv_nsec > other->tv_nsec;
}

/* Reads block and trailer. The file's mtime in seconds, if it is a regular file of exactly that size and all is right;
 * 0 for a first load that the file's times must be made to show. */
static long long read_sealed(const Block *block, const How *how) {
    struct iovec parts[2] = {{block->view.buf, (size_t)block->view.len}, {block->page, how->page_bytes}};
    ssize_t total = block->view.len + (ssize_t)how->page_bytes;
    struct stat status;
    long long result = NOT_DONE;
    int descriptor = open_no_links(block->path, how->flags);
    if (descriptor < 0)
        return NOT_DONE;
    if (fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == total) {
        int first = how->by_use && !is_after(&status.st_atim, &status.st_mtim);
        if (first && !is_cached(descriptor, total))
            fcntl(descriptor, F_SETFL, O_DIRECT); /* where it fails, the page cache serves */
        if (preadv(descriptor, parts, 2, 0) == total && (!how->checksum || is_right(block, how)))
            result = first && how->by_use == UNMARKED ? 0 : (long long)status.st_mtime;
    }
    close(descriptor);
    return result;
}

/* Writes block and trailer into an unnamed file of `folder`, then gives it its name. */
static long long publish(const Block *block, const How *how, int folder, const char *name) {
    struct iovec parts[2] = {{block->view.buf, (size_t)block->view.len}, {block->page, how->page_bytes}};
    ssize_t total = block->view.len + (ssize_t)how->page_bytes;
    char source[32];
    long long result = NOT_DONE;
    seal(block, how);
    int descriptor = openat(folder, ".", O_TMPFILE | how->flags, (mode_t)how->file_mode);
    if (descriptor < 0)
        return NOT_DONE;
    snprintf(source, sizeof source, "/proc/self/fd/%d", descriptor);
    /* Of a buffered file a crash may leave a prefix, which looks like vLLM's, unless its size comes before its name. */
    if (((how->flags & O_DIRECT) || ftruncate(descriptor, total) == 0) && pwritev(descriptor, parts, 2, 0) == total &&
        linkat(AT_FDCWD, source, folder, name, AT_SYMLINK_FOLLOW) == 0)
        result = PUBLISHED;
    if (close(descriptor) != 0 && result == PUBLISHED) { /* a quota may be found out late */
        unlinkat(folder, name, 0);
        result = NOT_DONE;
    }
    return result;
}

/* Cuts the last part off a path; NULL where there is none. */
static char *cut(char *path) {
    char *slash = strrchr(path, '/');
    if (!slash || slash == path)
        return NULL;
    *slash = '\0';
    return slash + 1;
}

/* Opens the folder `name` of a folder after making it, if need be; `is_new` says so. Closes the folder above. */
static int enter(int above, const char *name, int mode, int *is_new) {
    *is_new = mkdirat(above, name, (mode_t)mode) == 0;
    int folder = openat(above, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    close(above);
    return folder;
}

/* The same for a block below whose root at most the last two folders are missing. */
static long long write_sealed(const Block *block, const How *how) {
    const int flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
    char path[PATH_MAX], *name, *leaf, *first;
    struct stat status;
    int is_new, folder, above;
    long long result = NOT_DONE;
    size_t length = strlen(block->path);
    if (length >= sizeof path)
        return NOT_DONE;
    memcpy(path, block->path, length + 1);
    if (!(name = cut(path)) || !(leaf = cut(path)))
        return NOT_DONE;
    if ((above = open_no_links(path, flags)) < 0 && errno == ENOENT && (first = cut(path)) &&
        (above = open_no_links(path, flags)) >= 0)
        above = enter(above, first, how->dir_mode, &is_new);
    if (above < 0 || (folder = enter(above, leaf, how->dir_mode, &is_new)) < 0)
        return NOT_DONE;
    if (is_new || fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) != 0)
        result = publish(block, how, folder, name);
    else if (S_ISREG(status.st_mode) && status.st_size == block->view.len + (ssize_t)how->page_bytes)
        result = THERE_ALREADY;
    close(folder);
    return result;
}

/* The size of a regular file, whatever else is there or not is -1. */
static long long size_of(const Block *block, const How *how) {
    struct stat status;
    (void)how;
    return fstatat(AT_FDCWD, block->path, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(status.st_mode)
               ? (long long)status.st_size
               : NOT_DONE;
}

typedef long long (*Course)(const Block *, const How *);

/* The key of a block; one that does not fill its place as that of the call's trailer does is left to `block_io.py`. */
static int take_key(Block *block, PyObject *key, const How *how) {
    uint16_t wanted;
    memcpy(&wanted, how->trailer + KEY_LENGTH_AT, sizeof wanted);
    char *bytes;
    if (PyBytes_AsStringAndSize(key, &bytes, &block->key_bytes))
        return 0;
    block->key = bytes;
    if (block->key_bytes != wanted || wanted > KEY_BYTES_MAX)
        block->key = NULL;
    return 1;
}

/* Takes `course` with every block: the list of results, or NULL with an exception set. Without `views`, paths alone. */
static PyObject *each(PyObject *paths, PyObject *keys, PyObject *views, Py_buffer *pages, const How *how, int access,
                      Course course) {
    Py_ssize_t count = PyList_Size(paths), held = 0;
    PyObject *list = NULL;
    Block *blocks = NULL;
    if (views && (PyList_Size(views) != count || PyList_Size(keys) != count ||
                  pages->len < count * (Py_ssize_t)how->page_bytes))
        PyErr_SetString(PyExc_ValueError, "there must be a key, a view and a page for each path");
    else if (!(blocks = PyMem_Calloc((size_t)count + 1, sizeof *blocks)))
        PyErr_NoMemory();
    else {
        for (; held < count; held++) {
            blocks[held].path = PyUnicode_AsUTF8AndSize(PyList_GetItem(paths, held), NULL);
            if (!blocks[held].path)
                break;
            if (views && !take_key(&blocks[held], PyList_GetItem(keys, held), how))
                break;
            if (views && PyObject_GetBuffer(PyList_GetItem(views, held), &blocks[held].view, access))
                break;
            if (pages)
                blocks[held].page = (char *)pages->buf + held * (Py_ssize_t)how->page_bytes;
        }
        if (held == count) {
            Py_BEGIN_ALLOW_THREADS;
            for (Py_ssize_t i = 0; i < count; i++)
                blocks[i].result = views && !blocks[i].key ? NOT_DONE : course(&blocks[i], how);
            Py_END_ALLOW_THREADS;
            list = PyList_New(count);
        }
        for (Py_ssize_t i = 0; list && i < count; i++) {
            PyObject *result = PyLong_FromLongLong(blocks[i].result);
            if (result)
                PyList_SetItem(list, i, result);
            else
                Py_CLEAR(list);
        }
        while (held)
            PyBuffer_Release(&blocks[--held].view);
    }
    PyMem_Free(blocks);
    return list;
}

/* Parses the arguments of the two calls that move bytes: after the flags a read has `by_use`, a write its two modes. */
static PyObject *move(PyObject *arguments, const char *format, int access, Course course) {
    PyObject *paths, *keys, *views, *result = NULL;
    Py_buffer pages, trailer;
    Py_ssize_t page_bytes;
    unsigned long long checksum;
    int numbers[2] = {0};
    How how = {0};
    if (!PyArg_ParseTuple(arguments, format, &PyList_Type, &paths, &PyList_Type, &keys, &PyList_Type, &views, &pages,
                          &page_bytes, &trailer, &checksum, &how.flags, &numbers[0], &numbers[1]))
        return NULL;
    how.by_use = how.file_mode = numbers[0];
    how.dir_mode = numbers[1];
    how.page_bytes = (size_t)page_bytes;
    how.trailer = trailer.buf;
    how.checksum = (Checksum)(uintptr_t)checksum;
    if (trailer.len < TRAILER_BYTES || page_bytes < TRAILER_BYTES)
        PyErr_SetString(PyExc_ValueError, "a trailer does not fit");
    else
        result = each(paths, keys, views, &pages, &how, access, course);
    PyBuffer_Release(&pages);
    PyBuffer_Release(&trailer);
    return result;
}

static PyObject *read_blocks(PyObject *module, PyObject *arguments) {
    return move(arguments, "O!O!O!w*ny*Kii", PyBUF_WRITABLE, read_sealed);
}

static PyObject *write_blocks(PyObject *module, PyObject *arguments) {
    return move(arguments, "O!O!O!w*ny*Kiii", PyBUF_SIMPLE, write_sealed);
}

static PyObject *sizes(PyObject *module, PyObject *paths) {
    const How how = {0};
    if (!PyList_Check(paths)) {
        PyErr_SetString(PyExc_TypeError, "a list of paths");
        return NULL;
    }
    return each(paths, NULL, NULL, NULL, &how, 0, size_of);
}

static PyMethodDef methods[] = {
    {"sizes", sizes, METH_O, "sizes(paths) -> bytes of each regular file, -1 for anything else."},
    {"read_blocks", read_blocks, METH_VARARGS,
     "read_blocks(paths, keys, views, pages, page_bytes, trailer, checksum, flags, by_use) -> mtime of each in seconds, "
     "-1 where not done. Without checksum (0) nothing is verified. by_use: 1, first loads go past the page cache; 2, they "
     "return 0 as well."},
    {"write_blocks", write_blocks, METH_VARARGS,
     "write_blocks(paths, keys, views, pages, page_bytes, trailer, checksum, flags, file_mode, dir_mode) -> 1 published, "
     "2 there already, -1 not done."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "VERSION", VERSION) != 0)
        Py_CLEAR(module);
    return module;
}
