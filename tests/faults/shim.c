/* Faults of the system for one process tree: a wall clock that jumps, no inotify, files that cannot be read.
 *
 * Loaded by LD_PRELOAD; FAULT_SHIM names a file of 4096 bytes that the test may write at any time:
 *   0: int64 nanoseconds added to CLOCK_REALTIME     8: int32 errno of inotify_init1     12: int32 errno of
 *   inotify_add_watch     16: int32 errno of reading     20: int32 how often anything failed     64: path of the file
 *   whose reading fails
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct faults {
    volatile int64_t ahead_ns;
    volatile int32_t init_errno, watch_errno, read_errno, count;
    char unused[40];
    char path[1024];
};

static struct faults *faults;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("FAULT_SHIM");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *area = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (area != MAP_FAILED)
        faults = area;
}

static int failed(int32_t number) {
    if (!faults || !number)
        return 0;
    __atomic_add_fetch(&faults->count, 1, __ATOMIC_RELAXED);
    errno = number;
    return 1;
}

int clock_gettime(clockid_t id, struct timespec *at) {
    int result = (int)syscall(SYS_clock_gettime, id, at);
    if (result == 0 && id == CLOCK_REALTIME && faults && faults->ahead_ns) {
        int64_t whole = at->tv_sec * 1000000000LL + at->tv_nsec + faults->ahead_ns;
        at->tv_sec = whole / 1000000000LL;
        at->tv_nsec = whole % 1000000000LL;
    }
    return result;
}

time_t time(time_t *where) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    if (where)
        *where = at.tv_sec;
    return at.tv_sec;
}

int gettimeofday(struct timeval *restrict where, void *restrict zone) {
    struct timespec at;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &at);
    where->tv_sec = at.tv_sec;
    where->tv_usec = at.tv_nsec / 1000;
    return 0;
}

int inotify_init1(int flags) {
    return failed(faults ? faults->init_errno : 0) ? -1 : (int)syscall(SYS_inotify_init1, flags);
}

int inotify_add_watch(int fd, const char *path, uint32_t mask) {
    return failed(faults ? faults->watch_errno : 0) ? -1 : (int)syscall(SYS_inotify_add_watch, fd, path, mask);
}

ssize_t read(int fd, void *into, size_t size) {
    if (faults && faults->read_errno && faults->path[0]) {
        char link[64], name[1024];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, name, sizeof name - 1);
        if (length > 0) {
            name[length] = 0;
            if (strcmp(name, faults->path) == 0 && failed(faults->read_errno))
                return -1;
        }
    }
    return syscall(SYS_read, fd, into, size);
}
