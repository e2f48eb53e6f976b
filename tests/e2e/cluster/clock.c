/* Preloaded into redis-server: its wall clock is ahead by the seconds in the file that CLOCK_FILE names. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec real;
    if (syscall(SYS_clock_gettime, CLOCK_REALTIME, &real) != 0) return -1;
    char text[32] = {0};
    const char *file = getenv("CLOCK_FILE");
    int open_file = file ? open(file, O_RDONLY) : -1;
    if (open_file >= 0) {
        if (read(open_file, text, sizeof text - 1) < 0) text[0] = 0;
        close(open_file);
    }
    now->tv_sec = real.tv_sec + atol(text);
    now->tv_usec = real.tv_nsec / 1000;
    return 0;
}
