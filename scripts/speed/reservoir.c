/* Keep free memory from going back to the hypervisor, and hand it out as it is needed.
 *
 *   reservoir LOW      answers "full" to every line it reads; ends with its input
 *
 * A virtual machine may return memory that lies idle; touching it again then costs seconds per
 * gigabyte, more than the work to be timed, and by chance. Touching it once beforehand helps only
 * who uses it within a second. So all but LOW bytes are held here, in huge pages, and given back
 * in small steps whenever less than LOW is free.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <sys/un.h>
#include <unistd.h>

enum { STEP = 32 << 20 };

static uint64_t unused(void) {
    struct sysinfo facts;
    sysinfo(&facts);
    return (uint64_t)facts.freeram * facts.mem_unit;
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "see the text at the top of reservoir.c\n"), 2;
    uint64_t low = strtoull(argv[1], 0, 10), held = 0;
    uint64_t room = (uint64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE) / STEP * STEP;
    int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char *area = mmap(0, room, PROT_READ | PROT_WRITE, kind, -1, 0), line[64];
    if (area == MAP_FAILED) return perror("mmap"), 1;
    madvise(area, room, MADV_HUGEPAGE);
    /* Two would hand the same memory to and fro: a name that only one process can have. */
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "\0ws-bench-reservoir"};
    if (bind(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&name, sizeof name))
        return perror("reservoir: is another one running?"), 1;
    /* If memory runs out after all, this is what the kernel should end. */
    int score = open("/proc/self/oom_score_adj", O_WRONLY);
    if (score < 0 || write(score, "1000", 4) != 4) return perror("oom_score_adj"), 1;
    struct pollfd input = {0, POLLIN, 0};
    for (;;) {
        if (poll(&input, 1, 1) > 0) {
            if (read(0, line, sizeof line) <= 0) return 0;
            for (; unused() > low + STEP && held < room; held += STEP)
                memset(area + held, 1, STEP);
            puts("full");
            fflush(stdout);
        }
        while (held && unused() < low) madvise(area + (held -= STEP), STEP, MADV_DONTNEED);
    }
}
