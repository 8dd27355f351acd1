/* Stands between a program and the calls that change or read files below one directory (LD_PRELOAD).
 *
 * It counts them, and can kill the process before the n-th, let some fail, cut them short or slow
 * them down. It writes down what was made, renamed, removed and flushed, with a copy of each file
 * as it was when it was flushed: `disk.py` makes of that what a machine without power keeps.
 *
 * Nothing happens before `faults_begin`, which a forked child calls for itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static struct {
    int active, log, error, matched;
    char root[PATH_MAX], snapshots[PATH_MAX], kinds[32], only[256], how;
    size_t length;
    long count, kill_at, first, times;
} it;

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

/* how: 0 observes, 'e' fails with `error`, 's' cuts reads and writes short, 'd' waits `error` ms.
 * kinds: letters of the calls below that this is for; from the `first` matching one, `times` of them.
 * only: a part of their paths. */
void faults_begin(const char *root, const char *log, long kill_at, const char *kinds,
                  const char *only, const char *how, long first, long times, int error) {
    memset(&it, 0, sizeof it);
    snprintf(it.root, sizeof it.root, "%s", root);
    snprintf(it.snapshots, sizeof it.snapshots, "%s.d", log);
    snprintf(it.kinds, sizeof it.kinds, "%s", kinds);
    snprintf(it.only, sizeof it.only, "%s", only);
    it.length = strlen(root);
    it.how = how[0];
    it.kill_at = kill_at;
    it.first = first;
    it.times = times;
    it.error = error;
    it.log = -1;
    if (log[0]) {
        syscall(SYS_mkdirat, AT_FDCWD, it.snapshots, 0700);
        it.log = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
    it.active = 1;
}

long faults_count(void) { return it.count; }

#define REAL(name) ({ static __typeof__(&name) real; if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name); real; })

static int of_descriptor(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long n = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (n < 0) n = 0;
    path[n] = 0;
    return n >= 10 && !strcmp(path + n - 10, " (deleted)") ? 0 : (int)n;
}

static void of_name(int at, const char *name, char *path) {
    if (!name) { path[0] = 0; return; }
    if (name[0] == '/') { snprintf(path, PATH_MAX, "%s", name); return; }
    char folder[PATH_MAX];
    if (at == AT_FDCWD) { if (syscall(SYS_getcwd, folder, sizeof folder) < 0) folder[0] = 0; }
    else of_descriptor(at, folder);
    if (snprintf(path, PATH_MAX, "%s/%s", folder, name) >= PATH_MAX) path[0] = 0;
}

static int below(const char *path) {
    return !strncmp(path, it.root, it.length) && (path[it.length] == '/' || !path[it.length]);
}

static long inode(const char *path) {
    struct stat facts;
    return fstatat(AT_FDCWD, path, &facts, AT_SYMLINK_NOFOLLOW) ? 0 : (long)facts.st_ino;
}

static void note(char kind, long number, const char *path, const char *second) {
    if (it.log < 0) return;
    char line[2 * PATH_MAX + 64];
    int n = snprintf(line, sizeof line, "%c\t%ld\t%ld\t%s\t%s\n", kind, it.count, number,
                     path + it.length, second ? second + it.length : "");
    (void)!syscall(SYS_write, it.log, line, n);
}

static void keep(const char *path) { /* as it was when it was flushed */
    char copy[PATH_MAX + 32], block[1 << 16];
    snprintf(copy, sizeof copy, "%s/%ld", it.snapshots, it.count);
    int from = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    int to = (int)syscall(SYS_openat, AT_FDCWD, copy, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    long n;
    while (from >= 0 && to >= 0 && (n = syscall(SYS_read, from, block, sizeof block)) > 0)
        (void)!syscall(SYS_write, to, block, n);
    if (from >= 0) syscall(SYS_close, from);
    if (to >= 0) syscall(SYS_close, to);
}

/* What is to happen to a call: 0 as asked, 1 fail (errno is set), 2 cut it short. */
static int fate(char kind, const char *path, int changes) {
    if (changes) {
        it.count++;
        if (it.kill_at && it.count == it.kill_at) syscall(SYS_kill, getpid(), SIGKILL);
    }
    if (!it.how || !strchr(it.kinds, kind) || !strstr(path, it.only)) return 0;
    it.matched++;
    if (it.matched < it.first || (it.times && it.matched >= it.first + it.times)) return 0;
    if (it.how == 'd') {
        struct timespec pause = {it.error / 1000, it.error % 1000 * 1000000L};
        nanosleep(&pause, NULL);
        return 0;
    }
    if (it.how == 's') return 2;
    errno = it.error;
    return 1;
}

#define ENTER pthread_mutex_lock(&turn)
#define LEAVE do { int kept = errno; pthread_mutex_unlock(&turn); errno = kept; } while (0)

/* Calls on a descriptor: `less` shortens them. */
#define ON(fd, kind, changes, less, call) do { \
    char path[PATH_MAX]; \
    if (!it.active || !of_descriptor(fd, path) || !below(path)) return call; \
    ENTER; \
    int what = fate(kind, path, changes); \
    if (what == 2) { less; } \
    __typeof__(call) got = what == 1 ? -1 : call; \
    if (changes && got >= 0) { struct stat f; fstat(fd, &f); note(kind, (long)f.st_ino, path, NULL); } \
    LEAVE; \
    return got; \
} while (0)

#define HALF(n) if (n > 1) n = n / 2
#define FEWER (void)0; struct iovec one = *v; if (one.iov_len > 1) one.iov_len /= 2; v = &one; n = 1

ssize_t read(int fd, void *b, size_t n) { ON(fd, 'r', 0, HALF(n), REAL(read)(fd, b, n)); }
ssize_t pread(int fd, void *b, size_t n, off_t o) { ON(fd, 'r', 0, HALF(n), REAL(pread)(fd, b, n, o)); }
ssize_t pread64(int fd, void *b, size_t n, off64_t o) { ON(fd, 'r', 0, HALF(n), REAL(pread64)(fd, b, n, o)); }
ssize_t write(int fd, const void *b, size_t n) { ON(fd, 'W', 1, HALF(n), REAL(write)(fd, b, n)); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { ON(fd, 'W', 1, HALF(n), REAL(pwrite)(fd, b, n, o)); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { ON(fd, 'W', 1, HALF(n), REAL(pwrite64)(fd, b, n, o)); }

#define VECTORED(fd, kind, changes, call) do { \
    struct iovec one = *v; \
    ON(fd, kind, changes, if (n > 0) { HALF(one.iov_len); v = &one; n = 1; }, call); \
} while (0)

ssize_t readv(int fd, const struct iovec *v, int n) { VECTORED(fd, 'r', 0, REAL(readv)(fd, v, n)); }
ssize_t preadv(int fd, const struct iovec *v, int n, off_t o) { VECTORED(fd, 'r', 0, REAL(preadv)(fd, v, n, o)); }
ssize_t preadv64(int fd, const struct iovec *v, int n, off64_t o) { VECTORED(fd, 'r', 0, REAL(preadv64)(fd, v, n, o)); }
ssize_t preadv2(int fd, const struct iovec *v, int n, off_t o, int f) { VECTORED(fd, 'r', 0, REAL(preadv2)(fd, v, n, o, f)); }
ssize_t preadv64v2(int fd, const struct iovec *v, int n, off64_t o, int f) { VECTORED(fd, 'r', 0, REAL(preadv64v2)(fd, v, n, o, f)); }
ssize_t writev(int fd, const struct iovec *v, int n) { VECTORED(fd, 'W', 1, REAL(writev)(fd, v, n)); }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t o) { VECTORED(fd, 'W', 1, REAL(pwritev)(fd, v, n, o)); }
ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t o) { VECTORED(fd, 'W', 1, REAL(pwritev64)(fd, v, n, o)); }

ssize_t copy_file_range(int in, off64_t *i, int out, off64_t *o, size_t n, unsigned f) {
    ON(out, 'W', 1, HALF(n), REAL(copy_file_range)(in, i, out, o, n, f));
}
ssize_t sendfile(int out, int in, off_t *o, size_t n) { ON(out, 'W', 1, HALF(n), REAL(sendfile)(out, in, o, n)); }
ssize_t sendfile64(int out, int in, off64_t *o, size_t n) { ON(out, 'W', 1, HALF(n), REAL(sendfile64)(out, in, o, n)); }
int ftruncate(int fd, off_t n) { ON(fd, 'T', 1, (void)0, REAL(ftruncate)(fd, n)); }
int ftruncate64(int fd, off64_t n) { ON(fd, 'T', 1, (void)0, REAL(ftruncate64)(fd, n)); }
int fallocate(int fd, int m, off_t o, off_t n) { ON(fd, 'A', 1, (void)0, REAL(fallocate)(fd, m, o, n)); }
int fallocate64(int fd, int m, off64_t o, off64_t n) { ON(fd, 'A', 1, (void)0, REAL(fallocate64)(fd, m, o, n)); }

static int allocated(int fd, off_t o, off_t n) { /* returns its error, and leaves errno alone */
    int got = REAL(posix_fallocate)(fd, o, n);
    if (got) errno = got;
    return got ? -1 : 0;
}
static int allocate(int fd, off_t o, off_t n) { ON(fd, 'A', 1, (void)0, allocated(fd, o, n)); }
int posix_fallocate(int fd, off_t o, off_t n) { int e = errno, g = allocate(fd, o, n) ? errno : 0; errno = e; return g; }
int posix_fallocate64(int fd, off64_t o, off64_t n) { return posix_fallocate(fd, o, n); }

/* Flushed is what was copied here; the machine's own disk need not be waited for. */
static int flush(int fd) {
    char path[PATH_MAX];
    struct stat facts;
    if (!it.active || !of_descriptor(fd, path) || !below(path)) return (int)syscall(SYS_fdatasync, fd);
    ENTER;
    int got = fate('F', path, 1) == 1 ? -1 : 0;
    if (!got && !fstat(fd, &facts)) {
        int folder = S_ISDIR(facts.st_mode);
        if (!folder && it.log >= 0) keep(path);
        note(folder ? 'D' : 'F', (long)facts.st_ino, path, NULL);
    }
    LEAVE;
    return got;
}
int fsync(int fd) { return flush(fd); }
int fdatasync(int fd) { return flush(fd); }

static int opened(int at, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    int makes = flags & (O_CREAT | O_TRUNC);
    if (it.active) of_name(at, name, path);
    if (!it.active || !below(path)) return (int)syscall(SYS_openat, at, name, flags, mode);
    ENTER;
    long before = makes ? inode(path) : 1;
    int changes = makes && (!before || flags & O_TRUNC);
    int got = fate(changes ? 'C' : 'o', path, changes) == 1 ? -1 : (int)syscall(SYS_openat, at, name, flags, mode);
    if (changes && got >= 0) note('C', inode(path), path, NULL);
    LEAVE;
    return got;
}
#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list l; va_start(l, flags); mode = va_arg(l, mode_t); va_end(l); }
int open(const char *p, int flags, ...) { MODE return opened(AT_FDCWD, p, flags, mode); }
int open64(const char *p, int flags, ...) { MODE return opened(AT_FDCWD, p, flags | O_LARGEFILE, mode); }
int openat(int at, const char *p, int flags, ...) { MODE return opened(at, p, flags, mode); }
int openat64(int at, const char *p, int flags, ...) { MODE return opened(at, p, flags | O_LARGEFILE, mode); }
int creat(const char *p, mode_t mode) { return opened(AT_FDCWD, p, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *p, mode_t mode) { return creat(p, mode); }

/* Calls on names. */
#define NAMED(kind, at, name, at2, name2, call) do { \
    char path[PATH_MAX], second[PATH_MAX]; \
    if (!it.active) return call; \
    of_name(at, name, path); \
    of_name(at2, name2, second); \
    if (!below(path) || (second[0] && !below(second))) return call; \
    ENTER; \
    long number = inode(path); \
    int got = fate(kind, second[0] ? second : path, 1) == 1 ? -1 : (int)(call); \
    if (!got) note(kind, number ? number : inode(path), path, second[0] ? second : NULL); \
    LEAVE; \
    return got; \
} while (0)

int rename(const char *a, const char *b) { NAMED('R', AT_FDCWD, a, AT_FDCWD, b, syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, 0)); }
int renameat(int i, const char *a, int j, const char *b) { NAMED('R', i, a, j, b, syscall(SYS_renameat2, i, a, j, b, 0)); }
int renameat2(int i, const char *a, int j, const char *b, unsigned f) { NAMED('R', i, a, j, b, syscall(SYS_renameat2, i, a, j, b, f)); }
int unlink(const char *a) { NAMED('U', AT_FDCWD, a, AT_FDCWD, NULL, syscall(SYS_unlinkat, AT_FDCWD, a, 0)); }
int remove(const char *a) { struct stat f; return !lstat(a, &f) && S_ISDIR(f.st_mode) ? rmdir(a) : unlink(a); }
int rmdir(const char *a) { NAMED('X', AT_FDCWD, a, AT_FDCWD, NULL, syscall(SYS_unlinkat, AT_FDCWD, a, AT_REMOVEDIR)); }
static int removed(int i, const char *a) { NAMED('X', i, a, AT_FDCWD, NULL, syscall(SYS_unlinkat, i, a, AT_REMOVEDIR)); }
static int unlinked(int i, const char *a) { NAMED('U', i, a, AT_FDCWD, NULL, syscall(SYS_unlinkat, i, a, 0)); }
int unlinkat(int i, const char *a, int f) { return f & AT_REMOVEDIR ? removed(i, a) : unlinked(i, a); }
int mkdir(const char *a, mode_t m) { NAMED('M', AT_FDCWD, a, AT_FDCWD, NULL, syscall(SYS_mkdirat, AT_FDCWD, a, m)); }
int mkdirat(int i, const char *a, mode_t m) { NAMED('M', i, a, AT_FDCWD, NULL, syscall(SYS_mkdirat, i, a, m)); }
int symlink(const char *t, const char *a) { NAMED('L', AT_FDCWD, a, AT_FDCWD, NULL, syscall(SYS_symlinkat, t, AT_FDCWD, a)); }
