/* Preloaded into a process: counts what it does to files below one directory, tells of it, and fails at one point.
 *
 * A point is a call that changes what is on the volume or what of it is safe: creating, writing, truncating, syncing,
 * renaming, removing. Every call that succeeded is appended to the trace, from which the state after a loss of power is
 * worked out (disk.py). One lock around each call keeps the trace in the order of what happened.
 *
 * LevelDB's own log for people (LOG, LOG.old) goes by stdio, is never synced and holds nothing: it is left alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, TRUNCATE, SYNC, SYNC_DIRECTORY, RENAME, UNLINK, MKDIR, RMDIR, FAULT };
enum { NOTHING = 0, CRASH, TORN, FAIL, STOP };
#define FILES 4096

struct head { /* disk.py reads this layout */
  uint32_t data, path, other;
  uint32_t what;
  int64_t inode, offset, time;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_length;
static int trace = -1;
static long points, at = -1, last = -1;
static int mode, failure;
static unsigned part;
static long long until; /* of FAIL: everything fails up to this time, too */
static long hold_ms;
static char watched[FILES]; /* by file descriptor: 1 file, 2 directory */

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* From here on: `at` is the point to fail at (-1: none), `count` how many points fail and for how many ms after the first;
 * `cut` in 0..255 is how much of a torn write is written. Returns 0. */
int sweep_arm(const char *directory, const char *trace_file, long point, int how, int error, long count, long hold,
              unsigned cut) {
  if (!realpath(directory, root)) return errno;
  root_length = strlen(root);
  trace = syscall(SYS_openat, AT_FDCWD, trace_file, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
  if (trace < 0) return errno;
  points = 0;
  at = point, last = point + count - 1, mode = how, failure = error, hold_ms = hold, part = cut;
  return 0;
}

long sweep_points(void) { return points; }

static void tell(uint32_t what, int64_t inode, int64_t offset, const char *path, const char *other, const void *data,
                 size_t size) {
  struct head head = {(uint32_t)size, path ? (uint32_t)strlen(path) : 0, other ? (uint32_t)strlen(other) : 0, what, inode,
                      offset, now()};
  struct iovec parts[4] = {
      {&head, sizeof head}, {(void *)path, head.path}, {(void *)other, head.other}, {(void *)data, size}};
  if (syscall(SYS_writev, trace, parts, 4) < 0) abort();
}

static void die(void) {
  syscall(SYS_kill, getpid(), SIGKILL);
  for (;;) pause();
}

/* What is to become of the next point: NOTHING, TORN (the caller does its part, then dies) or FAIL. CRASH never returns. */
static int fate(int may_fail) {
  long number = points++;
  if (at < 0 || number < at) return NOTHING;
  if (mode == CRASH) die();
  if (mode == STOP && number == at) syscall(SYS_kill, getpid(), SIGSTOP);
  if (mode == TORN) return number == at ? TORN : NOTHING;
  if (mode == FAIL && may_fail) {
    if (number == at && hold_ms) until = now() + hold_ms * 1000000LL;
    if (number <= last || now() < until) {
      tell(FAULT, 0, number, 0, 0, 0, 0);
      return FAIL;
    }
  }
  return NOTHING;
}

static int below(const char *path) {
  const char *name;
  if (trace < 0 || strncmp(path, root, root_length) || (path[root_length] && path[root_length] != '/')) return 0;
  name = strrchr(path, '/') + 1;
  return strcmp(name, "LOG") && strcmp(name, "LOG.old");
}

/* The absolute path of (directory, path); 0 when it is not below the root. */
static int resolve(int directory, const char *path, char *into) {
  char link[64];
  ssize_t length;
  if (trace < 0) return 0;
  if (path[0] == '/') {
    if (strlen(path) >= PATH_MAX) return 0;
    strcpy(into, path);
    return below(into);
  }
  if (directory == AT_FDCWD) {
    if (!getcwd(into, PATH_MAX)) return 0;
    length = strlen(into);
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    length = readlink(link, into, PATH_MAX - 1);
    if (length < 0) return 0;
  }
  if (length + strlen(path) + 2 >= PATH_MAX) return 0;
  into[length] = '/';
  strcpy(into + length + 1, path);
  return below(into);
}

static int64_t inode_of(int fd) {
  struct stat about;
  return fstat(fd, &about) ? 0 : (int64_t)about.st_ino;
}

static int fail(void) {
  errno = failure;
  return -1;
}

static int do_open(int directory, const char *path, int flags, mode_t permission) {
  char full[PATH_MAX];
  int fd, how = NOTHING, created = 0, cut = 0;
  if (!resolve(directory, path, full)) return syscall(SYS_openat, directory, path, flags, permission);
  pthread_mutex_lock(&lock);
  if (flags & (O_CREAT | O_TRUNC)) {
    struct stat about;
    created = stat(full, &about) != 0;
    cut = !created && (flags & O_TRUNC) && about.st_size;
    if ((created && (flags & O_CREAT)) || cut) how = fate(1);
  }
  if (how == FAIL) {
    pthread_mutex_unlock(&lock);
    return fail();
  }
  fd = syscall(SYS_openat, directory, path, flags, permission);
  if (fd >= 0) {
    struct stat about;
    fstat(fd, &about);
    if (fd < FILES) watched[fd] = S_ISDIR(about.st_mode) ? 2 : 1;
    if (created) tell(CREATE, about.st_ino, 0, full, 0, 0, 0);
    if (cut) tell(TRUNCATE, about.st_ino, 0, 0, 0, 0, 0);
  }
  if (how == TORN) die();
  pthread_mutex_unlock(&lock);
  return fd;
}

static mode_t permission_of(int flags, va_list more) {
  return (flags & (O_CREAT | __O_TMPFILE)) ? va_arg(more, mode_t) : 0;
}

#define OPEN(name)                               \
  int name(const char *path, int flags, ...) {   \
    va_list more;                                \
    mode_t permission;                           \
    va_start(more, flags);                       \
    permission = permission_of(flags, more);     \
    va_end(more);                                \
    return do_open(AT_FDCWD, path, flags, permission); \
  }
#define OPENAT(name)                                          \
  int name(int directory, const char *path, int flags, ...) { \
    va_list more;                                             \
    mode_t permission;                                        \
    va_start(more, flags);                                    \
    permission = permission_of(flags, more);                  \
    va_end(more);                                             \
    return do_open(directory, path, flags, permission);       \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

static int is_watched(int fd) { return trace >= 0 && fd >= 0 && fd < FILES && watched[fd]; }

int close(int fd) {
  if (fd >= 0 && fd < FILES) watched[fd] = 0;
  return syscall(SYS_close, fd);
}

static ssize_t do_write(int fd, const void *data, size_t size, off_t offset, int positioned) {
  ssize_t done;
  int how;
  size_t wanted = size;
  off_t place = offset;
  if (!is_watched(fd)) return positioned ? syscall(SYS_pwrite64, fd, data, size, offset) : syscall(SYS_write, fd, data, size);
  pthread_mutex_lock(&lock);
  how = fate(1);
  if (how != NOTHING) wanted = size * part / 256;
  if (!positioned) {
    place = fcntl(fd, F_GETFL) & O_APPEND ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
  }
  done = wanted || how == NOTHING ? (positioned ? syscall(SYS_pwrite64, fd, data, wanted, offset) : syscall(SYS_write, fd, data, wanted)) : 0;
  if (done > 0) tell(WRITE, inode_of(fd), place, 0, 0, data, done);
  if (how == TORN) die();
  pthread_mutex_unlock(&lock);
  return how == FAIL ? fail() : done;
}

ssize_t write(int fd, const void *data, size_t size) { return do_write(fd, data, size, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return do_write(fd, data, size, offset, 1); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return do_write(fd, data, size, offset, 1); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
  if (!is_watched(fd)) return syscall(SYS_writev, fd, parts, count);
  return count ? do_write(fd, parts[0].iov_base, parts[0].iov_len, 0, 0) : 0; /* a short write: the caller goes on */
}

static int do_truncate(int fd, off_t size) {
  int how, result;
  if (!is_watched(fd)) return syscall(SYS_ftruncate, fd, size);
  pthread_mutex_lock(&lock);
  how = fate(1);
  result = how == FAIL ? fail() : (int)syscall(SYS_ftruncate, fd, size);
  if (!result) tell(TRUNCATE, inode_of(fd), size, 0, 0, 0, 0);
  if (how == TORN) die();
  pthread_mutex_unlock(&lock);
  return result;
}
int ftruncate(int fd, off_t size) { return do_truncate(fd, size); }
int ftruncate64(int fd, off_t size) { return do_truncate(fd, size); }

static int do_fallocate(int fd, off_t offset, off_t size, const char *name) {
  int (*real)(int, off_t, off_t) = (int (*)(int, off_t, off_t))dlsym(RTLD_NEXT, name);
  int how, result;
  if (!is_watched(fd)) return real(fd, offset, size);
  pthread_mutex_lock(&lock);
  how = fate(1);
  result = how == FAIL ? failure : real(fd, offset, size);
  if (!result) tell(TRUNCATE, inode_of(fd), offset + size, 0, 0, 0, 0); /* the only use: a fresh file of zeros */
  if (how == TORN) die();
  pthread_mutex_unlock(&lock);
  return result;
}
int posix_fallocate(int fd, off_t offset, off_t size) { return do_fallocate(fd, offset, size, "posix_fallocate"); }
int posix_fallocate64(int fd, off_t offset, off_t size) { return do_fallocate(fd, offset, size, "posix_fallocate64"); }

static int do_sync(int fd) {
  char link[64], path[PATH_MAX];
  ssize_t length;
  int how;
  pthread_mutex_lock(&lock);
  how = fate(1);
  if (how != FAIL) {
    if (watched[fd] == 2) {
      snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
      length = readlink(link, path, sizeof path - 1);
      path[length < 0 ? 0 : length] = 0;
      tell(SYNC_DIRECTORY, 0, 0, path, 0, 0, 0);
    } else {
      tell(SYNC, inode_of(fd), 0, 0, 0, 0, 0);
    }
  }
  if (how == TORN) die();
  pthread_mutex_unlock(&lock);
  return how == FAIL ? fail() : 0; /* nothing here outlives the test: the volume itself need not be asked */
}
int fsync(int fd) { return is_watched(fd) ? do_sync(fd) : (int)syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return is_watched(fd) ? do_sync(fd) : (int)syscall(SYS_fdatasync, fd); }

static int do_rename(int from_directory, const char *from, int to_directory, const char *to) {
  char source[PATH_MAX], target[PATH_MAX];
  int how, result;
  if (!resolve(from_directory, from, source) || !resolve(to_directory, to, target))
    return syscall(SYS_renameat2, from_directory, from, to_directory, to, 0);
  pthread_mutex_lock(&lock);
  how = fate(1);
  result = how == FAIL ? fail() : (int)syscall(SYS_renameat2, from_directory, from, to_directory, to, 0);
  if (!result) tell(RENAME, 0, 0, source, target, 0, 0);
  if (how == TORN) die();
  pthread_mutex_unlock(&lock);
  return result;
}
int rename(const char *from, const char *to) { return do_rename(AT_FDCWD, from, AT_FDCWD, to); }
int renameat(int one, const char *from, int two, const char *to) { return do_rename(one, from, two, to); }

static int do_unlink(int directory, const char *path, int flags) {
  char full[PATH_MAX];
  int how, result;
  if (!resolve(directory, path, full)) return syscall(SYS_unlinkat, directory, path, flags);
  pthread_mutex_lock(&lock);
  how = fate(failure == EIO); /* removing needs no space */
  result = how == FAIL ? fail() : (int)syscall(SYS_unlinkat, directory, path, flags);
  if (!result) tell(flags & AT_REMOVEDIR ? RMDIR : UNLINK, 0, 0, full, 0, 0, 0);
  if (how == TORN) die();
  pthread_mutex_unlock(&lock);
  return result;
}
int unlink(const char *path) { return do_unlink(AT_FDCWD, path, 0); }
int unlinkat(int directory, const char *path, int flags) { return do_unlink(directory, path, flags); }
int rmdir(const char *path) { return do_unlink(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdir(const char *path, mode_t permission) {
  char full[PATH_MAX];
  struct stat about;
  int how, result;
  if (!resolve(AT_FDCWD, path, full) || !stat(full, &about)) return syscall(SYS_mkdirat, AT_FDCWD, path, permission);
  pthread_mutex_lock(&lock);
  how = fate(1);
  result = how == FAIL ? fail() : (int)syscall(SYS_mkdirat, AT_FDCWD, path, permission);
  if (!result) tell(MKDIR, 0, 0, full, 0, 0, 0);
  if (how == TORN) die();
  pthread_mutex_unlock(&lock);
  return result;
}
