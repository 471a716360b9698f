/* Counts what a process does to files below one folder, and ends it at the n-th operation; see kill_campaign.py.
 *
 * Loaded before the C library (LD_PRELOAD), so that Python, Rust (safetensors, tokenizers) and C++ (torch, Arrow) are
 * seen alike. A write that is hit leaves half of its bytes, any other operation is not done. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[4096];
static long at = 0, count = 0;
static int counts_sockets = 0;

void kill_arm(const char *folder, long operation, int sockets) {
    strncpy(below, folder, sizeof below - 1);
    at = operation;
    counts_sockets = sockets;
    count = 0;
}

long kill_count(void) { return count; }

static int is_below(int handle, const char *path) {
    char whole[8192], link[64];
    if (!below[0]) return 0;
    if (path && path[0] == '/') return !strncmp(path, below, strlen(below));
    if (handle == AT_FDCWD) return 0; /* the campaign gives absolute paths */
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, whole, sizeof whole - 1);
    if (length < 0) return 0;
    whole[length] = 0;
    if (counts_sockets && !strncmp(whole, "socket:", 7)) return 1;
    return !strncmp(whole, below, strlen(below));
}

static int is_hit(int handle, const char *path) {
    return is_below(handle, path) && __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST) == at;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CHECK(handle, path) do { if (is_hit(handle, path)) _exit(137); } while (0)
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list list; va_start(list, flags); mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; \
        va_end(list); \
        if (WRITES(flags)) CHECK(AT_FDCWD, path); \
        return REAL(name)(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list list; va_start(list, flags); mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; \
        va_end(list); \
        if (WRITES(flags)) CHECK(folder, path); \
        return REAL(name)(folder, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

FILE *fopen(const char *path, const char *mode) {
    if (strpbrk(mode, "wa+")) CHECK(AT_FDCWD, path);
    return REAL(fopen)(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    if (strpbrk(mode, "wa+")) CHECK(AT_FDCWD, path);
    return REAL(fopen64)(path, mode);
}

ssize_t write(int file, const void *bytes, size_t size) {
    if (is_hit(file, NULL)) { REAL(write)(file, bytes, size / 2); _exit(137); }
    return REAL(write)(file, bytes, size);
}
ssize_t pwrite(int file, const void *bytes, size_t size, off_t from) {
    if (is_hit(file, NULL)) { REAL(pwrite)(file, bytes, size / 2, from); _exit(137); }
    return REAL(pwrite)(file, bytes, size, from);
}
ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t from) {
    if (is_hit(file, NULL)) { REAL(pwrite64)(file, bytes, size / 2, from); _exit(137); }
    return REAL(pwrite64)(file, bytes, size, from);
}
ssize_t writev(int file, const struct iovec *parts, int number) {
    if (is_hit(file, NULL)) { REAL(writev)(file, parts, number / 2); _exit(137); }
    return REAL(writev)(file, parts, number);
}
ssize_t sendfile(int to, int from, off_t *offset, size_t size) {
    CHECK(to, NULL);
    return REAL(sendfile)(to, from, offset, size);
}
ssize_t sendfile64(int to, int from, off64_t *offset, size_t size) {
    CHECK(to, NULL);
    return REAL(sendfile64)(to, from, offset, size);
}
ssize_t send(int to, const void *bytes, size_t size, int flags) {
    if (is_hit(to, NULL)) { REAL(send)(to, bytes, size / 2, flags); _exit(137); }
    return REAL(send)(to, bytes, size, flags);
}
int fsync(int file) { CHECK(file, NULL); return REAL(fsync)(file); }
int fdatasync(int file) { CHECK(file, NULL); return REAL(fdatasync)(file); }
int ftruncate(int file, off_t size) { CHECK(file, NULL); return REAL(ftruncate)(file, size); }
int ftruncate64(int file, off64_t size) { CHECK(file, NULL); return REAL(ftruncate64)(file, size); }
int rename(const char *from, const char *to) { CHECK(AT_FDCWD, to); return REAL(rename)(from, to); }
int renameat(int folder, const char *from, int other, const char *to) {
    CHECK(other, to);
    return REAL(renameat)(folder, from, other, to);
}
int renameat2(int folder, const char *from, int other, const char *to, unsigned flags) {
    CHECK(other, to);
    return REAL(renameat2)(folder, from, other, to, flags);
}
int link(const char *from, const char *to) { CHECK(AT_FDCWD, to); return REAL(link)(from, to); }
int linkat(int folder, const char *from, int other, const char *to, int flags) {
    CHECK(other, to);
    return REAL(linkat)(folder, from, other, to, flags);
}
int unlink(const char *path) { CHECK(AT_FDCWD, path); return REAL(unlink)(path); }
int unlinkat(int folder, const char *path, int flags) { CHECK(folder, path); return REAL(unlinkat)(folder, path, flags); }
int rmdir(const char *path) { CHECK(AT_FDCWD, path); return REAL(rmdir)(path); }
int mkdir(const char *path, mode_t mode) { CHECK(AT_FDCWD, path); return REAL(mkdir)(path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { CHECK(folder, path); return REAL(mkdirat)(folder, path, mode); }
