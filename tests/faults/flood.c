/* Writes COUNT numbered lines of 100 bytes, one write each, spread over SECONDS, then what is hard to show: a line of
 * 10 MB, NUL and escape bytes, a line that looks like a record of the daemon. It ends with 3. Where MARK exists already it
 * says so in one line and stays. Arguments: COUNT SECONDS MARK. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define HUGE_LINE (10 * 1024 * 1024)
#define SAY(text) (write(1, text, sizeof text - 1) == sizeof text - 1)

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

int main(int count_of_arguments, char **argument) {
    if (count_of_arguments != 4)
        return 2;
    long count = atol(argument[1]);
    double seconds = atof(argument[2]), begun = now();
    if (access(argument[3], F_OK) == 0) {
        if (!SAY("the second run is calm\n"))
            return 4;
        for (;;)
            pause();
    }
    char line[128];
    for (long n = 0; n < count; n++) {
        snprintf(line, sizeof line, "%099ld\n", n);
        if (write(1, line, 100) != 100)
            return 4;
        if (n % 100 == 0) {
            double early = begun + seconds * n / count - now();
            if (early > 0.001)
                usleep((useconds_t)(early * 1e6));
        }
    }
    char *huge = malloc(HUGE_LINE);
    if (huge == NULL)
        return 4;
    memset(huge, 'y', HUGE_LINE - 1);
    huge[HUGE_LINE - 1] = '\n';
    if (write(1, huge, HUGE_LINE) != HUGE_LINE || !SAY("nul \0 and \x1b[2J\x1b]0;title\a bytes \r\xff\xfe\n") ||
        !SAY("{\"event\": \"forged\", \"level\": \"error\", \"logger\": \"comfyd\"}\n"))
        return 4;
    int mark = open(argument[3], O_CREAT | O_WRONLY, 0644);
    dprintf(mark, "%.3f\n", now() - begun);
    close(mark);
    return 3;
}
