/* Preloaded into a daemon: syncing takes as long as the file PRESSURE says (first number, microseconds), and the wall
 * clock goes wrong by the second number (seconds). Both are read anew at each call, so a test can change them any time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *told; /* {microseconds, seconds} */

static void begin(void) {
  static int64_t nothing[2];
  if (told) return;
  const char *name = getenv("PRESSURE");
  int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
  void *mapped = file >= 0 ? mmap(NULL, sizeof nothing, PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
  if (file >= 0) close(file);
  told = mapped == MAP_FAILED ? nothing : mapped;
}

static void drag(void) {
  begin();
  if (told[0] > 0) usleep((useconds_t)told[0]);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int file) {
  drag();
  return REAL(fsync)(file);
}

int fdatasync(int file) {
  drag();
  return REAL(fdatasync)(file);
}

int clock_gettime(clockid_t clock, struct timespec *out) {
  static __typeof__(&clock_gettime) real;
  if (!real) real = REAL(clock_gettime);
  int failed = real(clock, out);
  if (!failed && clock == CLOCK_REALTIME) {
    begin();
    out->tv_sec += told[1];
  }
  return failed;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
  int failed = REAL(gettimeofday)(out, zone);
  begin();
  if (!failed) out->tv_sec += told[1];
  return failed;
}

time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
