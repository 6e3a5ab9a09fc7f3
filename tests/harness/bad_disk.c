/* A disk that loses sectors or stops answering, for the data files of copies: preloaded into nodes.
 *
 * In the folder HOLDFAST_TEST_DISKS, for a node NAME:
 *   bad-NAME    lines "OFFSET LENGTH": reads that touch these bytes of a data file fail with EIO until
 *               they have been written again
 *   stall-NAME  while it exists, nothing that reaches the disk returns: flushes and direct reads from
 *               the start, writes once the page cache has taken them for two seconds
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define RANGES 64
#define CACHED_S 2.0

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct timespec loaded;
static off64_t starts[RANGES], ends[RANGES];
static int ranges;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Puts the node's name into `node`; returns whether fd is below its folder for copies. */
static int node_of(int fd, char *node, int *is_data)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    char *at = strstr(path, "/nodes/");
    if (at == NULL || strstr(at, "/copies/") == NULL)
        return 0;
    sscanf(at, "/nodes/%31[^/]", node);
    *is_data = length > 5 && strcmp(path + length - 5, "/data") == 0;
    return 1;
}

static int fault_file(const char *kind, const char *node, struct stat *found, char *path)
{
    const char *folder = getenv("HOLDFAST_TEST_DISKS");
    if (folder == NULL)
        return 0;
    snprintf(path, 4096, "%s/%s-%s", folder, kind, node);
    return stat(path, found) == 0;
}

static void stall(int fd, double after_s)
{
    char node[32], path[4096];
    int is_data;
    struct stat found;
    struct timespec now;
    if (!node_of(fd, node, &is_data))
        return;
    while (fault_file("stall", node, &found, path)) {
        clock_gettime(CLOCK_REALTIME, &now);
        double age = now.tv_sec - found.st_mtim.tv_sec + (now.tv_nsec - found.st_mtim.tv_nsec) / 1e9;
        if (age < after_s)
            return;
        usleep(20000);
    }
}

/* Returns whether a read of these bytes fails; a write mends them. */
static int is_bad(int fd, off64_t offset, off64_t length, int write)
{
    char node[32], path[4096];
    int is_data, bad = 0;
    struct stat found;
    if (!node_of(fd, node, &is_data) || !is_data || !fault_file("bad", node, &found, path))
        return 0;
    pthread_mutex_lock(&lock);
    if (memcmp(&loaded, &found.st_mtim, sizeof loaded) != 0) {
        FILE *file = fopen(path, "r");
        long long start, count;
        loaded = found.st_mtim;
        for (ranges = 0; file && ranges < RANGES && fscanf(file, "%lld %lld", &start, &count) == 2;) {
            starts[ranges] = start;
            ends[ranges++] = start + count;
        }
        if (file)
            fclose(file);
    }
    for (int i = 0; i < ranges; i++)
        if (offset < ends[i] && starts[i] < offset + length) {
            if (write)
                starts[i] = ends[i] = -1;
            else
                bad = 1;
        }
    pthread_mutex_unlock(&lock);
    return bad;
}

static off64_t total(const struct iovec *parts, int count)
{
    off64_t length = 0;
    for (int i = 0; i < count; i++)
        length += parts[i].iov_len;
    return length;
}

ssize_t pread64(int fd, void *data, size_t length, off64_t offset)
{
    if (is_bad(fd, offset, length, 0)) {
        errno = EIO;
        return -1;
    }
    return REAL(pread64)(fd, data, length, offset);
}

ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    stall(fd, 0);
    return REAL(preadv64)(fd, parts, count, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
    stall(fd, CACHED_S);
    is_bad(fd, offset, length, 1);
    return REAL(pwrite64)(fd, data, length, offset);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    stall(fd, CACHED_S);
    is_bad(fd, offset, total(parts, count), 1);
    return REAL(pwritev64)(fd, parts, count, offset);
}

/* What Python calls where the C library has it. */
ssize_t preadv64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
    stall(fd, 0);
    return REAL(preadv64v2)(fd, parts, count, offset, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
    stall(fd, CACHED_S);
    is_bad(fd, offset, total(parts, count), 1);
    return REAL(pwritev64v2)(fd, parts, count, offset, flags);
}

int fdatasync(int fd)
{
    stall(fd, 0);
    return REAL(fdatasync)(fd);
}
