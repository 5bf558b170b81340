/* A supervised program that costs next to nothing: it says once that it started, then waits for its end.
 * child SOCKET ID [VERSION]   (VERSION may come from the environment)
 * Sends "ID VERSION PID NANOSECONDS" (CLOCK_MONOTONIC) to the datagram socket. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct timespec now;
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    char text[128];
    const char *version = argc > 3 ? argv[3] : getenv("VERSION");
    if (argc < 3 || strlen(argv[1]) >= sizeof to.sun_path) return 64;
    clock_gettime(CLOCK_MONOTONIC, &now);
    strcpy(to.sun_path, argv[1]);
    int length = snprintf(text, sizeof text, "%s %s %d %lld", argv[2], version ? version : "0", (int)getpid(),
                          (long long)now.tv_sec * 1000000000LL + now.tv_nsec);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sendto(fd, text, length, 0, (struct sockaddr *)&to, sizeof to) != length) return 65;
    close(fd);
    for (;;) pause();
}
