/* The system calls of a tier and nothing else, in threads: the floor of what one file a block costs. No checksum, no
 * Python, no queue. `raw.floor` compiles and runs it: floor CALLS FOLDER BLOCK_BYTES BLOCKS THREADS
 *
 * CALLS is "kvtier" or "vllm" (its tier in 0.33.0, as strace shows it). Stores all blocks, writes out and drops their
 * pages, loads all. Prints a JSON object: MiB/s and CPU seconds a GiB of "store" and "cold".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define SYS_CACHESTAT 451
#define PATH_BYTES 1024

static const char *folder;
static size_t block_bytes;
static int blocks, next_block, is_vllm;

typedef struct {
    char top[PATH_BYTES], leaf[PATH_BYTES + 16], path[PATH_BYTES + 96], temp[PATH_BYTES + 112];
    char top_name[8], leaf_name[16], name[80];
} Names;

/* Names in the tiers' form, spread over the folders as hashes are. */
static void name_block(int number, Names *names) {
    char digits[65];
    uint64_t state = (uint64_t)number + 1;
    for (int i = 0; i < 4; i++) {
        uint64_t z = (state += 0x9E3779B97F4A7C15u);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        snprintf(digits + 16 * i, 17, "%016llx", (unsigned long long)(z ^ (z >> 31)));
    }
    snprintf(names->top_name, sizeof names->top_name, "%.3s", digits);
    snprintf(names->leaf_name, sizeof names->leaf_name, "%.2s_g0", digits + 3);
    snprintf(names->name, sizeof names->name, "%s.bin", digits);
    snprintf(names->top, sizeof names->top, "%s/%s", folder, names->top_name);
    snprintf(names->leaf, sizeof names->leaf, "%s/%s", names->top, names->leaf_name);
    snprintf(names->path, sizeof names->path, "%s/%s", names->leaf, names->name);
    snprintf(names->temp, sizeof names->temp, "%s_1.tmp", names->path);
}

static int open_no_links(const char *path, int flags) {
    struct open_how how = {.flags = (unsigned)flags, .resolve = RESOLVE_NO_SYMLINKS};
    return (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
}

static int enter(int above, const char *name, int *is_new) {
    *is_new = mkdirat(above, name, 0700) == 0;
    int inside = openat(above, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    close(above);
    return inside;
}

static int store_as_kvtier(const Names *names, char *buffer) {
    const int flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
    char source[32];
    struct stat status;
    int is_new, above = open_no_links(names->top, flags);
    if (above < 0 && (above = open_no_links(folder, flags)) >= 0)
        above = enter(above, names->top_name, &is_new);
    int inside = enter(above, names->leaf_name, &is_new);
    if (!is_new)
        fstatat(inside, names->name, &status, AT_SYMLINK_NOFOLLOW);
    struct iovec parts[2] = {{buffer, block_bytes}, {buffer + block_bytes, PAGE}};
    int file = openat(inside, ".", O_TMPFILE | O_WRONLY | O_DIRECT | O_CLOEXEC, 0600);
    snprintf(source, sizeof source, "/proc/self/fd/%d", file);
    int ok = pwritev(file, parts, 2, 0) == (ssize_t)(block_bytes + PAGE) &&
             linkat(AT_FDCWD, source, inside, names->name, AT_SYMLINK_FOLLOW) == 0;
    close(file);
    close(inside);
    return ok;
}

static int load_as_kvtier(const Names *names, char *buffer) {
    struct stat status;
    uint64_t range[2] = {0, block_bytes + PAGE}, pages[5];
    int file = open_no_links(names->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    fstat(file, &status);
    syscall(SYS_CACHESTAT, file, range, pages, 0);
    fcntl(file, F_SETFL, O_DIRECT);
    struct iovec parts[2] = {{buffer, block_bytes}, {buffer + block_bytes, PAGE}};
    int ok = preadv(file, parts, 2, 0) == (ssize_t)(block_bytes + PAGE);
    close(file);
    return ok;
}

static int store_as_vllm(const Names *names, char *buffer) {
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_TRUNC | O_DIRECT;
    struct stat status;
    access(names->path, F_OK);
    if (stat(names->leaf, &status) != 0) {
        if (stat(names->top, &status) != 0 && stat(folder, &status) == 0)
            mkdir(names->top, 0777);
        mkdir(names->leaf, 0777);
    }
    int file = open(names->temp, flags, 0644);
    int ok = write(file, buffer, block_bytes) == (ssize_t)block_bytes;
    close(file);
    return ok && rename(names->temp, names->path) == 0;
}

static int load_as_vllm(const Names *names, char *buffer) {
    int file = open(names->path, O_RDONLY | O_DIRECT);
    int ok = read(file, buffer, block_bytes) == (ssize_t)block_bytes;
    close(file);
    return ok;
}

typedef int (*Course)(const Names *, char *);

static void *work(void *course) {
    char *buffer = mmap(NULL, block_bytes + PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    Names names;
    memset(buffer, 7, block_bytes + PAGE);
    for (int number; (number = __atomic_fetch_add(&next_block, 1, __ATOMIC_RELAXED)) < blocks;) {
        name_block(number, &names);
        if (!(*(Course *)course)(&names, buffer)) {
            perror(names.path);
            exit(1);
        }
    }
    munmap(buffer, block_bytes + PAGE);
    return NULL;
}

static double seconds_of(struct timeval time) { return (double)time.tv_sec + (double)time.tv_usec / 1e6; }

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return seconds_of(usage.ru_utime) + seconds_of(usage.ru_stime);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void run(const char *phase, Course course, int threads, const char *end) {
    pthread_t started[threads];
    next_block = 0;
    double cpu = cpu_seconds(), since = now(), mib = (double)blocks * (double)block_bytes / (1 << 20);
    for (int i = 0; i < threads; i++)
        pthread_create(&started[i], NULL, work, &course);
    for (int i = 0; i < threads; i++)
        pthread_join(started[i], NULL);
    printf("\"%s\": %.1f, \"%s CPU\": %.5f%s", phase, mib / (now() - since), phase,
           (cpu_seconds() - cpu) / mib * 1024, end);
}

int main(int count, char **words) {
    if (count != 6)
        return 64;
    is_vllm = strcmp(words[1], "vllm") == 0;
    folder = words[2];
    block_bytes = strtoul(words[3], NULL, 10);
    blocks = atoi(words[4]);
    printf("{");
    run("store", is_vllm ? store_as_vllm : store_as_kvtier, atoi(words[5]), ", ");
    int root = open(folder, O_RDONLY);
    syncfs(root);
    close(root);
    for (int number = 0; number < blocks; number++) {
        Names names;
        name_block(number, &names);
        int file = open(names.path, O_RDONLY);
        posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        close(file);
    }
    run("cold", is_vllm ? load_as_vllm : load_as_kvtier, atoi(words[5]), "}\n");
    return 0;
}
