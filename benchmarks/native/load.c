/* A load of requests: one thread, epoll, HTTP/1.1 with keep-alive.
 *
 *   load --port P --path /generate --connections N --bodies FILE [--rate R]
 *
 * FILE holds the bodies one after the other, each as its length in decimal, a newline, and its
 * bytes. Each is posted once, at most one at a time on each connection: as soon as a connection is
 * free or, with a rate, at moments chosen beforehand, by chance, R a second on average (a Poisson
 * process, the same in each run). What was measured is
 * printed as JSON: times in microseconds, each kind as 101 quantiles from the least to the most.
 *   latency  from the first byte sent, or from the moment when it was due, to the last one received
 *   first    from the first byte sent to the first of the answer's body
 *   gap      between two events of a stream, as they were read */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { READ_SIZE = 1 << 18, MAX_EVENTS = 256, STALL_MS = 60000 };
enum { HEAD, BODY, CHUNK_SIZE, CHUNK, CHUNK_END };

typedef struct {
    const char *data;
    size_t len;
} Body;

typedef struct {
    double *values;
    size_t len, size;
} Times;

typedef struct {
    int fd, state, status, is_chunked, is_last, closes;
    char head[8192];           /* of the request, then of the answer; then a chunk's size */
    size_t head_len, sent, left;
    const Body *body;
    long long start_ns, event_ns;
    int saw_first, newlines;
} Connection;

static Body *bodies;
static size_t body_count, next_body, done, errors, events, bytes;
static int poll_fd, port;
static double rate;            /* requests a second; 0: as fast as they are answered */
static int timer_fd;
static long long due_ns;       /* when the next body is to be sent */
static Connection **idle;      /* connections that wait for a body which is not due yet */
static size_t idle_count;
static const char *path;
static Times latency, first, gap;
static char buffer[READ_SIZE];
static char complaint[600];

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static double cpu_seconds(void) {
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (double)used.tv_sec + (double)used.tv_nsec / 1e9;
}

static void note(Times *times, long long ns) {
    if (times->len == times->size) {
        times->size = times->size ? 2 * times->size : 4096;
        if (!(times->values = realloc(times->values, times->size * sizeof(double)))) die("realloc");
    }
    times->values[times->len++] = (double)ns / 1000;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_times(const char *name, Times *times) {
    printf(",\"%s_us\":[", name);
    if (times->len) qsort(times->values, times->len, sizeof(double), compare);
    for (int i = 0; times->len && i <= 100; i++)
        printf("%s%.1f", i ? "," : "", times->values[(times->len - 1) * (size_t)i / 100]);
    printf("]");
}

static void read_bodies(const char *name) {
    FILE *file = fopen(name, "rb");
    size_t len, size = 0;
    if (!file) die(name);
    while (fscanf(file, "%zu", &len) == 1) {
        char *data = malloc(len + 1);
        if (fgetc(file) != '\n' || !data || fread(data, 1, len, file) != len) {
            fprintf(stderr, "%s: it ends inside a body\n", name);
            exit(1);
        }
        if (body_count == size && !(bodies = realloc(bodies, (size = 2 * size + 64) * sizeof *bodies)))
            die("realloc");
        bodies[body_count++] = (Body){data, len};
    }
    fclose(file);
}

static void watch(Connection *c, int op, unsigned what) {
    struct epoll_event event = {.events = what, .data.ptr = c};
    if (epoll_ctl(poll_fd, op, c->fd, &event)) die("epoll_ctl");
}

static void connect_to(Connection *c) {
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
    c->closes = 0;
}

/* Send what is left of a request; wait for room where there is none. */
static void push(Connection *c) {
    size_t whole = c->head_len + c->body->len;
    while (c->sent < whole) {
        int in_head = c->sent < c->head_len;
        const char *from = in_head ? c->head + c->sent : c->body->data + (c->sent - c->head_len);
        size_t len = in_head ? c->head_len - c->sent : whole - c->sent;
        ssize_t n = send(c->fd, from, len,
                         MSG_NOSIGNAL | MSG_DONTWAIT | (in_head && c->body->len ? MSG_MORE : 0));
        if (n < 0 && errno == EAGAIN) {
            watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            return;
        }
        if (n < 0) die("send");
        c->sent += (size_t)n;
    }
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
    c->head_len = 0; /* from now on: the answer's */
}

/* Set the timer to the moment when the next body is due. */
static void arm(void) {
    struct itimerspec at = {.it_value = {due_ns / 1000000000LL, due_ns % 1000000000LL}};
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL)) die("timerfd_settime");
}

static void begin(Connection *c) {
    if (next_body == body_count) return;
    long long start_ns = now_ns();
    if (rate > 0) {
        if (due_ns > start_ns) {
            idle[idle_count++] = c;
            return;
        }
        start_ns = due_ns;
        due_ns += (long long)(-log(1 - drand48()) / rate * 1e9);
        arm();
    }
    if (c->closes) {
        close(c->fd);
        connect_to(c);
    }
    c->body = &bodies[next_body++];
    c->head_len = (size_t)snprintf(c->head, sizeof c->head,
        "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
        "Authorization: Bearer bench\r\nContent-Length: %zu\r\n\r\n", path, port, c->body->len);
    c->sent = 0;
    c->state = HEAD;
    c->saw_first = c->newlines = 0;
    c->event_ns = 0;
    c->start_ns = start_ns;
    push(c);
}

static void end(Connection *c) {
    note(&latency, now_ns() - c->start_ns);
    done++;
    if (c->status != 200) errors++;
    c->head_len = 0;
    begin(c);
}

/* Read the answer's head, whole and ended by a NUL. */
static void read_head(Connection *c) {
    c->status = atoi(c->head + 9);
    c->is_chunked = c->is_last = 0;
    c->left = 0;
    for (char *line = strchr(c->head, '\n'); line; line = strchr(line + 1, '\n')) {
        if (!strncasecmp(line + 1, "content-length:", 15)) c->left = (size_t)atoll(line + 16);
        if (!strncasecmp(line + 1, "transfer-encoding: chunked", 26)) c->is_chunked = 1;
        if (!strncasecmp(line + 1, "connection: close", 17)) c->closes = 1;
    }
    c->state = c->is_chunked ? CHUNK_SIZE : BODY;
    c->head_len = 0;
}

/* Count what an answer's body holds: an event ends with an empty line. */
static void take(Connection *c, const char *data, size_t len, long long now) {
    if (!c->saw_first && len) {
        note(&first, now - c->start_ns);
        c->saw_first = 1;
    }
    if (c->status != 200 && !*complaint)
        snprintf(complaint, sizeof complaint, "HTTP %d: %.*s", c->status, (int)(len < 500 ? len : 500), data);
    for (size_t i = 0; c->is_chunked && i < len; i++) {
        if (data[i] == '\r') continue;
        c->newlines = data[i] == '\n' ? c->newlines + 1 : 0;
        if (c->newlines == 2) {
            events++;
            if (c->event_ns) note(&gap, now - c->event_ns);
            c->event_ns = now;
            c->newlines = 0;
        }
    }
}

/* One byte of a head, of a chunk's size or of what follows a chunk. */
static void step(Connection *c, char byte) {
    if (c->head_len + 1 >= sizeof c->head) {
        fprintf(stderr, "an answer's head is too long\n");
        exit(1);
    }
    c->head[c->head_len++] = byte;
    c->head[c->head_len] = 0;
    if (byte != '\n') return;
    if (c->state == HEAD) {
        if (c->head_len >= 4 && !memcmp(c->head + c->head_len - 4, "\r\n\r\n", 4)) {
            read_head(c);
            if (c->state == BODY && !c->left) end(c);
        }
    } else if (c->state == CHUNK_SIZE) {
        c->left = strtoul(c->head, NULL, 16);
        c->is_last = !c->left;
        c->state = c->left ? CHUNK : CHUNK_END;
        c->head_len = 0;
    } else {
        int is_last = c->is_last;
        c->state = CHUNK_SIZE;
        c->head_len = 0;
        if (is_last) end(c);
    }
}

static void pull(Connection *c) {
    ssize_t n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        if (c->body && next_body == body_count && c->state == HEAD && !c->head_len) {
            close(c->fd);
            return;
        }
        fprintf(stderr, "the server closed a connection\n");
        exit(1);
    }
    long long now = now_ns();
    bytes += (size_t)n;
    for (size_t at = 0; at < (size_t)n;) {
        if (c->state != BODY && c->state != CHUNK) {
            step(c, buffer[at++]);
            continue;
        }
        size_t len = (size_t)n - at < c->left ? (size_t)n - at : c->left;
        take(c, buffer + at, len, now);
        at += len;
        c->left -= len;
        if (c->left) continue;
        if (c->state == CHUNK) c->state = CHUNK_END;
        else end(c);
    }
}

/* Send what is due, on the connections that wait. */
static void tick(void) {
    while (idle_count && next_body < body_count && due_ns <= now_ns()) begin(idle[--idle_count]);
}

static void start_clock(int count) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    idle = calloc((size_t)count, sizeof *idle);
    if (timer_fd < 0 || !idle || epoll_ctl(poll_fd, EPOLL_CTL_ADD, timer_fd, &event)) die("timer");
    srand48(1);
    due_ns = now_ns();
}

static void run(Connection *connections, int count) {
    struct epoll_event ready[MAX_EVENTS];
    if (rate > 0) start_clock(count);
    for (int i = 0; i < count; i++) begin(&connections[i]);
    while (done < body_count) {
        int n = epoll_wait(poll_fd, ready, MAX_EVENTS, STALL_MS);
        if (n == 0) {
            fprintf(stderr, "nothing came for %d s; %zu of %zu were answered\n", STALL_MS / 1000,
                    done, body_count);
            exit(1);
        }
        for (int i = 0; i < n; i++) {
            Connection *c = ready[i].data.ptr;
            if (!c) {
                unsigned long long ticks;
                if (read(timer_fd, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die("timer");
                tick();
                continue;
            }
            if (ready[i].events & EPOLLOUT) push(c);
            if (ready[i].events & ~(unsigned)EPOLLOUT) pull(c);
        }
    }
}

int main(int count, char **words) {
    int connection_count = 0;
    for (int i = 1; i + 1 < count; i += 2) {
        if (!strcmp(words[i], "--port")) port = atoi(words[i + 1]);
        else if (!strcmp(words[i], "--path")) path = words[i + 1];
        else if (!strcmp(words[i], "--connections")) connection_count = atoi(words[i + 1]);
        else if (!strcmp(words[i], "--bodies")) read_bodies(words[i + 1]);
        else if (!strcmp(words[i], "--rate")) rate = atof(words[i + 1]);
    }
    if (!port || !path || connection_count < 1 || !body_count) {
        fprintf(stderr, "usage: load --port P --path /PATH --connections N --bodies FILE [--rate R]\n");
        return 2;
    }
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    Connection *connections = calloc((size_t)connection_count, sizeof *connections);
    if (!connections) die("calloc");
    for (int i = 0; i < connection_count; i++) connect_to(&connections[i]);
    double cpu = -cpu_seconds();
    long long start_ns = now_ns();
    run(connections, connection_count);
    double seconds = (double)(now_ns() - start_ns) / 1e9;
    cpu += cpu_seconds();
    if (errors) {
        fprintf(stderr, "%zu of %zu answers are no 200; %s\n", errors, done, complaint);
        return 1;
    }
    printf("{\"requests\":%zu,\"seconds\":%.6f,\"cpu_seconds\":%.6f,\"bytes\":%zu,\"events\":%zu",
           done, seconds, cpu, bytes, events);
    print_times("latency", &latency);
    print_times("first", &first);
    print_times("gap", &gap);
    printf("}\n");
}
