/* Sets TCP_NODELAY on every TCP connection that a program accepts; loaded with LD_PRELOAD.
 *
 * QEMU before 8.1 leaves it unset in its NBD server, so small replies wait for the client's delayed
 * acknowledgement (40 ms). Comparing with that would flatter us; with this the old QEMU does what the
 * newer ones do by themselves.
 *
 *     cc -shared -fPIC -O2 -o nodelay.so nodelay.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/socket.h>

typedef int (*accept4_function)(int, struct sockaddr *, socklen_t *, int);

int accept4(int listener, struct sockaddr *address, socklen_t *length, int flags)
{
    static accept4_function next;
    if (next == NULL)
        next = (accept4_function)dlsym(RTLD_NEXT, "accept4");
    int connection = next(listener, address, length, flags);
    if (connection >= 0) {
        int on = 1;
        /* Fails on a Unix socket, which needs no such thing. */
        (void)setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    return connection;
}

int accept(int listener, struct sockaddr *address, socklen_t *length)
{
    return accept4(listener, address, length, 0);
}
