// Preloaded into a process: writes down, in order, what it does to the files below a folder.
//
//   CRASH_ROOT    the folder
//   CRASH_RECORD  the file to write the record to; none: nothing is recorded
//   CRASH_LOSE    if set, syncs return at once and do nothing (a disk without any barrier)
//
// Every operation is written down twice, when it begins (with all that it writes) and when it has
// ended (with its result), each under one lock: so the record says which operations overlapped. The
// layout of an event is `struct event` and then `length` bytes; `recording.rs` reads it.
//
// Only the calls that a store makes are here. A call that is missing shows: the record, replayed,
// would then not give the folder that the process left.
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OPEN = 1, WRITE, TRUNCATE, SYNC, RENAME, REMOVE, MKDIR, END };

struct event {
    uint32_t kind;
    uint32_t id;     // of the operation; its END has the same
    uint32_t file;   // which opening of a file, counted from 1
    uint32_t length; // of what follows: bytes to write, or paths
    int64_t at;      // offset, length, flags or result
};

enum { FILES_MAX = 1 << 16 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *root;
static int record = -1;
static int lose;
static uint32_t operations, openings;
static uint32_t files[FILES_MAX]; // by descriptor; 0: none of ours

__attribute__((constructor)) static void start(void) {
    root = getenv("CRASH_ROOT");
    lose = getenv("CRASH_LOSE") != NULL;
    const char *path = getenv("CRASH_RECORD");
    if (root && path)
        record = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void put(enum kind kind, uint32_t id, uint32_t file, int64_t at, const void *data, size_t length) {
    struct event event = {kind, id, file, length, at};
    struct iovec parts[] = {{&event, sizeof event}, {(void *)data, length}};
    if (syscall(SYS_writev, record, parts, 2) != (long)(sizeof event + length))
        abort();
}

static uint32_t begin(enum kind kind, uint32_t file, int64_t at, const void *data, size_t length) {
    pthread_mutex_lock(&lock);
    uint32_t id = ++operations;
    put(kind, id, file, at, data, length);
    pthread_mutex_unlock(&lock);
    return id;
}

static long end(uint32_t id, long result) {
    pthread_mutex_lock(&lock);
    put(END, id, 0, result, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}

// The whole path of `name` in the folder `fd`; 0 if it is not recorded.
static size_t below_root(int fd, const char *name, char path[static PATH_MAX]) {
    if (record < 0)
        return 0;
    size_t length = 0;
    if (name[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, fd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", fd);
        ssize_t found = readlink(link, path, PATH_MAX - 1);
        if (found < 0)
            return 0;
        path[found] = '/';
        length = found + 1;
    }
    if (length + strlen(name) >= PATH_MAX)
        abort();
    strcpy(path + length, name);
    size_t above = strlen(root);
    int below = strncmp(path, root, above) == 0 && (path[above] == '/' || !path[above]);
    return below ? strlen(path) : 0;
}

static uint32_t file_of(int fd) {
    return record >= 0 && fd >= 0 && fd < FILES_MAX ? files[fd] : 0;
}

int openat64(int folder, const char *name, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    char path[PATH_MAX];
    size_t length = below_root(folder, name, path);
    // A folder that is only walked through is not numbered.
    if (!length || (flags & O_DIRECTORY)) {
        int fd = syscall(SYS_openat, folder, name, flags, mode);
        if (fd >= 0 && fd < FILES_MAX)
            files[fd] = 0;
        return fd;
    }
    uint32_t file = __atomic_add_fetch(&openings, 1, __ATOMIC_SEQ_CST);
    uint32_t id = begin(OPEN, file, flags, path, length);
    int fd = syscall(SYS_openat, folder, name, flags, mode);
    if (fd >= FILES_MAX)
        abort();
    if (fd >= 0)
        files[fd] = file;
    return end(id, fd);
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    return openat64(AT_FDCWD, path, flags, mode);
}

int close(int fd) {
    if (fd >= 0 && fd < FILES_MAX)
        files[fd] = 0;
    return syscall(SYS_close, fd);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at) {
    uint32_t file = file_of(fd);
    uint32_t id = file ? begin(WRITE, file, at, data, length) : 0;
    long result = syscall(SYS_pwrite64, fd, data, length, at);
    return file ? end(id, result) : result;
}

ssize_t write(int fd, const void *data, size_t length) {
    uint32_t file = file_of(fd);
    // A file that is written so has one writer.
    uint32_t id = file ? begin(WRITE, file, lseek64(fd, 0, SEEK_CUR), data, length) : 0;
    long result = syscall(SYS_write, fd, data, length);
    return file ? end(id, result) : result;
}

int ftruncate64(int fd, off64_t length) {
    uint32_t file = file_of(fd);
    uint32_t id = file ? begin(TRUNCATE, file, length, NULL, 0) : 0;
    long result = syscall(SYS_ftruncate, fd, length);
    return file ? end(id, result) : result;
}

static int sync_by(long number, int fd) {
    uint32_t file = file_of(fd);
    uint32_t id = file ? begin(SYNC, file, 0, NULL, 0) : 0;
    long result = lose ? 0 : syscall(number, fd);
    return file ? end(id, result) : result;
}

int fsync(int fd) { return sync_by(SYS_fsync, fd); }

int fdatasync(int fd) { return sync_by(SYS_fdatasync, fd); }

int rename(const char *from, const char *to) {
    char paths[2 * PATH_MAX];
    size_t length = below_root(AT_FDCWD, from, paths);
    if (!length)
        return syscall(SYS_rename, from, to);
    size_t both = length + 1 + below_root(AT_FDCWD, to, paths + length + 1);
    uint32_t id = begin(RENAME, 0, 0, paths, both);
    return end(id, syscall(SYS_rename, from, to));
}

int unlinkat(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    size_t length = below_root(folder, name, path);
    uint32_t id = length ? begin(REMOVE, 0, 0, path, length) : 0;
    long result = syscall(SYS_unlinkat, folder, name, flags);
    return length ? end(id, result) : result;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdir(const char *name, mode_t mode) {
    char path[PATH_MAX];
    size_t length = below_root(AT_FDCWD, name, path);
    uint32_t id = length ? begin(MKDIR, 0, 0, path, length) : 0;
    long result = syscall(SYS_mkdirat, AT_FDCWD, name, mode);
    return length ? end(id, result) : result;
}
