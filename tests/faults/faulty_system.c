/* A system that is at fault, preloaded into the verbs' processes. Without its variables every call
goes through.

A disk that is full from the Nth write below a folder on: RECAME_FULL_BELOW names the folder,
RECAME_FULL_FROM the first write that fails (counted from 1, in this process).
A clock that was set: RECAME_CLOCK_SHIFT_S is added to the time of day. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static atomic_int calls;

static int full(int file) {
    const char *below = getenv("RECAME_FULL_BELOW"), *from = getenv("RECAME_FULL_FROM");
    if (below == NULL || from == NULL) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (strncmp(path, below, strlen(below)) != 0) return 0;
    if (atomic_fetch_add(&calls, 1) + 1 < atoi(from)) return 0;
    errno = ENOSPC;
    return 1;
}

#define PASS(name, kind, arguments, names)                                   \
    kind name arguments {                                                    \
        static kind(*next) arguments;                                        \
        if (next == NULL) next = dlsym(RTLD_NEXT, #name);                    \
        return full(file) ? -1 : next names;                                 \
    }

PASS(write, ssize_t, (int file, const void *data, size_t size), (file, data, size))
PASS(pwrite, ssize_t, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
PASS(pwrite64, ssize_t, (int file, const void *data, size_t size, off64_t at), (file, data, size, at))
PASS(writev, ssize_t, (int file, const struct iovec *parts, int count), (file, parts, count))

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*next)(clockid_t, struct timespec *);
    if (next == NULL) next = dlsym(RTLD_NEXT, "clock_gettime");
    const char *shift = getenv("RECAME_CLOCK_SHIFT_S");
    int code = next(clock, now);
    if (code == 0 && clock == CLOCK_REALTIME && shift != NULL) now->tv_sec += atol(shift);
    return code;
}
