/* A stand-in for an SGLang worker that costs next to nothing: one thread, epoll, HTTP/1.1.
 *
 *   worker --port P --ids 1,2,3 [--pause-ms 2] [--incremental] [--variants 16] [--model PATH]
 *
 * Every answer is made once and then copied. A reply is the ids with all but the last rotated, in
 * as many variants as asked for, one after the other; the last id is the stop token. A stream sends
 * an item for each token with a pause between two; its items repeat all before them, or hold only
 * what is new with --incremental and below /incremental/. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { READ_SIZE = 1 << 18, MAX_FDS = 1 << 16, MAX_EVENTS = 256 };

typedef struct {
    char *data;
    size_t len, size;
} Text;

typedef struct {
    Text whole, chat;          /* complete answers, heads included */
    Text *items[2];            /* of a stream: what is new only, and chat */
    Text ids, logprobs;        /* those of the whole reply, with commas between them */
    size_t *id_ends, *logprob_ends; /* where each of them ends, its comma not counted */
} Variant;

enum { INCREMENTAL, CHAT, CUMULATIVE };
enum { WORD_LEN = 6 };

typedef struct {
    Text in, out;
    size_t sent;               /* of out */
    size_t head_len, need;     /* of the request that is being read; 0 until its head is whole */
    Variant *stream;           /* that is being sent, or NULL */
    int kind;                  /* of its items */
    int next;                  /* index of the item to come */
    long long due_ns;
    int is_open, waits_to_write;
} Connection;

static Connection *connections;
static int highest_fd, poll_fd, timer_fd, is_incremental, id_count, variant_count = 16;
static long *ids;
static long long pause_ns = 2000000;
static const char *model = "default";
static Variant *variants;
static unsigned long requests;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void reserve(Text *text, size_t more) {
    if (text->len + more <= text->size) return;
    while (text->len + more > text->size) text->size = text->size ? 2 * text->size : 4096;
    if (!(text->data = realloc(text->data, text->size))) die("realloc");
}

static void add(Text *text, const char *data, size_t len) {
    reserve(text, len);
    memcpy(text->data + text->len, data, len);
    text->len += len;
}

__attribute__((format(printf, 2, 3))) static void addf(Text *text, const char *format, ...) {
    va_list args;
    reserve(text, 1024);
    va_start(args, format);
    text->len += (size_t)vsnprintf(text->data + text->len, 1024, format, args);
    va_end(args);
}

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static long id_of(int variant, int index) {
    int body = id_count - 1;
    return index == body ? ids[body] : ids[(index + 7 * variant) % body];
}

static void add_words(Text *text, int first, int count) {
    reserve(text, (size_t)count * WORD_LEN);
    for (int i = 0; i < count; i++, text->len += WORD_LEN) {
        memcpy(text->data + text->len, "word0 ", WORD_LEN);
        text->data[text->len + 4] = (char)('0' + (first + i) % 10);
    }
}

static void write_out(Variant *variant) {
    int number = (int)(variant - variants);
    if (variant->id_ends) return;
    variant->id_ends = calloc((size_t)id_count, sizeof *variant->id_ends);
    variant->logprob_ends = calloc((size_t)id_count, sizeof *variant->logprob_ends);
    if (!variant->id_ends || !variant->logprob_ends) die("calloc");
    for (int i = 0; i < id_count; i++) {
        const char *comma = i ? "," : "";
        addf(&variant->ids, "%s%ld", comma, id_of(number, i));
        variant->id_ends[i] = variant->ids.len;
        addf(&variant->logprobs, "%s[%.10f,%ld,null]", comma,
             -0.0625 - (i + number) % 977 / 1024.0, id_of(number, i));
        variant->logprob_ends[i] = variant->logprobs.len;
    }
}

static void add_part(Text *text, const Text *all, const size_t *ends, int start, int end) {
    size_t from = start ? ends[start - 1] + 1 : 0;
    add(text, all->data + from, ends[end - 1] - from);
}

/* SGLang's item after `end` tokens, telling those from `start` on. */
static void add_item(Text *text, Variant *variant, int start, int end) {
    int number = (int)(variant - variants), is_last = end == id_count;
    write_out(variant);
    addf(text, "{\"text\":\"");
    add_words(text, number + start, end - start);
    addf(text, "\",\"output_ids\":[");
    add_part(text, &variant->ids, variant->id_ends, start, end);
    addf(text, "],\"meta_info\":{\"id\":\"%032x\",\"finish_reason\":", number);
    if (is_last)
        addf(text, "{\"type\":\"stop\",\"matched\":%ld}", ids[id_count - 1]);
    else
        addf(text, "null");
    addf(text, ",\"prompt_tokens\":100,\"weight_version\":\"default\",\"num_retractions\":0,");
    addf(text, "\"output_token_logprobs\":[");
    add_part(text, &variant->logprobs, variant->logprob_ends, start, end);
    addf(text, "],\"output_token_logprobs_length\":%d,\"completion_tokens\":%d,", end, end);
    addf(text, "\"cached_tokens\":0,\"e2e_latency\":%s}}", is_last ? "0.25" : "null");
}

static void add_chat(Text *text, int variant) {
    addf(text, "{\"id\":\"%032x\",\"object\":\"chat.completion\",\"created\":1700000000,", variant);
    addf(text, "\"model\":\"default\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",");
    addf(text, "\"content\":\"");
    add_words(text, variant, id_count);
    addf(text, "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":100,");
    addf(text, "\"completion_tokens\":%d,\"total_tokens\":%d}}", id_count, 100 + id_count);
}

static void add_chat_item(Text *text, int variant, int index) {
    addf(text, "{\"id\":\"%032x\",\"object\":\"chat.completion.chunk\",", variant);
    addf(text, "\"created\":1700000000,\"model\":\"default\",\"choices\":[{\"index\":0,\"delta\":{");
    addf(text, "%s\"content\":\"word%d \"},\"logprobs\":null,\"finish_reason\":%s}]}",
         index ? "" : "\"role\":\"assistant\",", (variant + index) % 10,
         index == id_count - 1 ? "\"stop\"" : "null");
}

static void add_answer(Text *text, int status, const char *reason, const char *body, size_t len) {
    addf(text, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
         status, reason, len);
    add(text, body, len);
}

/* An item as a chunk; the last one is followed by the stream's end. */
static void add_event(Text *text, Variant *variant, int kind, int index) {
    static const char done[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    static Text item;
    item.len = 0;
    if (kind == CHAT)
        add_chat_item(&item, (int)(variant - variants), index);
    else
        add_item(&item, variant, kind == INCREMENTAL ? index : 0, index + 1);
    addf(text, "%zx\r\ndata: ", item.len + 8);
    add(text, item.data, item.len);
    add(text, "\n\n\r\n", 4);
    if (index == id_count - 1) add(text, done, sizeof done - 1);
}

/* Items that repeat all before them would fill the memory: they are put together each time. */
static void add_event_again(Text *text, Variant *variant, int kind, int index) {
    if (kind == CUMULATIVE) {
        add_event(text, variant, kind, index);
        return;
    }
    if (!variant->items[kind]) {
        variant->items[kind] = calloc((size_t)id_count, sizeof(Text));
        if (!variant->items[kind]) die("calloc");
    }
    Text *made = &variant->items[kind][index];
    if (!made->len) add_event(made, variant, kind, index);
    add(text, made->data, made->len);
}

static Text *whole_of(Variant *variant, int is_chat) {
    Text *answer = is_chat ? &variant->chat : &variant->whole;
    if (answer->len) return answer;
    Text body = {0};
    if (is_chat)
        add_chat(&body, (int)(variant - variants));
    else
        add_item(&body, variant, 0, id_count);
    add_answer(answer, 200, "OK", body.data, body.len);
    free(body.data);
    return answer;
}

static void close_connection(int fd) {
    Connection *c = &connections[fd];
    free(c->in.data);
    free(c->out.data);
    memset(c, 0, sizeof *c);
    close(fd);
}

static void watch(int fd, int op, unsigned events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(poll_fd, op, fd, &event)) die("epoll_ctl");
}

static void flush(int fd) {
    Connection *c = &connections[fd];
    while (c->sent < c->out.len) {
        ssize_t n = send(fd, c->out.data + c->sent, c->out.len - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            if (!c->waits_to_write) watch(fd, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            c->waits_to_write = 1;
            return;
        }
        if (n < 0) {
            close_connection(fd);
            return;
        }
        c->sent += (size_t)n;
    }
    c->sent = c->out.len = 0;
    if (c->waits_to_write) watch(fd, EPOLL_CTL_MOD, EPOLLIN);
    c->waits_to_write = 0;
}

static void send_item(int fd) {
    Connection *c = &connections[fd];
    add_event_again(&c->out, c->stream, c->kind, c->next++);
    if (c->next == id_count)
        c->stream = NULL;
    else
        c->due_ns = now_ns() + pause_ns;
    flush(fd);
}

static int starts(const char *path, const char *beginning) {
    return !strncmp(path, beginning, strlen(beginning));
}

static int ends(const char *path, const char *end) {
    size_t path_len = strlen(path), end_len = strlen(end);
    return path_len >= end_len && !strcmp(path + path_len - end_len, end);
}

static int has(const char *data, size_t len, const char *part) {
    return memmem(data, len, part, strlen(part)) != NULL;
}

static void add_info(Text *out, const char *path) {
    static const char *const empty[] = {"/health", "/health_generate", "/ping", "/ready"};
    Text info = {0};
    for (size_t i = 0; i < sizeof empty / sizeof *empty; i++)
        if (!strcmp(path, empty[i])) {
            add_answer(out, 200, "OK", "", 0);
            return;
        }
    if (ends(path, "model_info"))
        addf(&info, "{\"model_path\":\"%.400s\",\"tokenizer_path\":\"%.400s\",\"is_generation\":true,"
             "\"weight_version\":\"default\"}", model, model);
    else if (ends(path, "server_info"))
        addf(&info, "{\"model_path\":\"%.400s\",\"served_model_name\":\"default\",\"tp_size\":1,"
             "\"dp_size\":1,\"max_total_num_tokens\":1000000,\"internal_states\":[{}],"
             "\"version\":\"0.5.23\",\"status\":\"ready\"}", model);
    else if (!strcmp(path, "/v1/models"))
        addf(&info, "{\"object\":\"list\",\"data\":[{\"id\":\"default\",\"object\":\"model\"}]}");
    if (info.len)
        add_answer(out, 200, "OK", info.data, info.len);
    else
        add_answer(out, 404, "Not Found", "{\"detail\":\"Not Found\"}", 22);
    free(info.data);
}

static void answer(int fd, const char *method, const char *path, const char *body, size_t len) {
    static const char head[] =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
        "Transfer-Encoding: chunked\r\n\r\n";
    Connection *c = &connections[fd];
    int is_chat = ends(path, "/chat/completions");
    if (!strcmp(method, "GET") && ends(path, "/generate")) {
        static const char no[] = "{\"detail\":\"Method Not Allowed\"}";
        add_answer(&c->out, 405, "Method Not Allowed", no, sizeof no - 1);
    } else if (strcmp(method, "POST") || !(is_chat || ends(path, "/generate"))) {
        if (!strcmp(path, "/abort_request"))
            add_answer(&c->out, 200, "OK", "", 0);
        else
            add_info(&c->out, path);
    } else {
        Variant *variant = &variants[requests++ % (unsigned long)variant_count];
        if (has(body, len, "\"stream\":true") || has(body, len, "\"stream\": true")) {
            int is_new_only = is_incremental || starts(path, "/incremental/");
            add(&c->out, head, sizeof head - 1);
            c->stream = variant;
            c->kind = is_chat ? CHAT : is_new_only ? INCREMENTAL : CUMULATIVE;
            c->next = 0;
            send_item(fd);
            return;
        }
        Text *whole = whole_of(variant, is_chat);
        add(&c->out, whole->data, whole->len);
    }
    flush(fd);
}

/* Read the head of a request, if it is whole; its end becomes a NUL. Returns 0 where it is bad. */
static int read_head(Connection *c) {
    char *end = memmem(c->in.data, c->in.len, "\r\n\r\n", 4);
    if (!end) return c->in.len < (1 << 16);
    c->head_len = (size_t)(end - c->in.data) + 4;
    c->need = c->head_len;
    for (char *line = memchr(c->in.data, '\n', c->head_len); line && line < end;
         line = memchr(line + 1, '\n', (size_t)(end + 2 - line)))
        if (!strncasecmp(line + 1, "content-length:", 15))
            c->need += (size_t)atoll(line + 16);
    *end = 0;
    return 1;
}

static void read_requests(int fd) {
    Connection *c = &connections[fd];
    for (;;) {
        reserve(&c->in, READ_SIZE);
        ssize_t n = recv(fd, c->in.data + c->in.len, READ_SIZE, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) {
            close_connection(fd);
            return;
        }
        if (n < 0) return;
        c->in.len += (size_t)n;
        if (!c->need && !read_head(c)) {
            close_connection(fd);
            return;
        }
        if (c->need && c->in.len >= c->need) {
            char method[16] = "", path[512] = "";
            size_t head_len = c->head_len, len = c->need - head_len;
            sscanf(c->in.data, "%15s %511[^ ?]", method, path);
            c->in.len = c->need = 0; /* who sends the next request before the answer is cut off */
            answer(fd, method, path, c->in.data + head_len, len);
            if (!c->is_open) return;
        }
    }
}

static void send_what_is_due(void) {
    long long now = now_ns();
    for (int fd = 0; fd <= highest_fd; fd++)
        if (connections[fd].stream && connections[fd].due_ns <= now) send_item(fd);
}

static void set_timer(void) {
    long long due = 0;
    for (int fd = 0; fd <= highest_fd; fd++)
        if (connections[fd].stream && (!due || connections[fd].due_ns < due))
            due = connections[fd].due_ns;
    struct itimerspec at = {.it_value = {due / 1000000000, due % 1000000000}};
    if (timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL)) die("timerfd_settime");
}

static void accept_all(int listener) {
    for (;;) {
        int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= MAX_FDS) {
            close(fd);
            return;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connections[fd].is_open = 1;
        if (fd > highest_fd) highest_fd = fd;
        watch(fd, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static int listening(int port) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) die("listen");
    return fd;
}

static void read_ids(char *list) {
    ids = calloc(strlen(list) / 2 + 1, sizeof *ids);
    for (char *each = strtok(list, ","); each; each = strtok(NULL, ",")) ids[id_count++] = atol(each);
    if (id_count < 2) {
        fprintf(stderr, "--ids: at least two are needed\n");
        exit(2);
    }
}

static int read_options(int count, char **words) {
    int port = 0;
    for (int i = 1; i < count; i++) {
        char *value = i + 1 < count ? words[i + 1] : "";
        if (!strcmp(words[i], "--incremental")) {
            is_incremental = 1;
            continue;
        }
        if (!strcmp(words[i], "--port")) port = atoi(value);
        else if (!strcmp(words[i], "--ids")) read_ids(value);
        else if (!strcmp(words[i], "--pause-ms")) pause_ns = (long long)(1e6 * atof(value));
        else if (!strcmp(words[i], "--variants")) variant_count = atoi(value);
        else if (!strcmp(words[i], "--model")) model = value;
        else {
            fprintf(stderr, "unknown option: %s\n", words[i]);
            exit(2);
        }
        i++;
    }
    if (!port || !id_count || variant_count < 1) {
        fprintf(stderr, "the following arguments are required: --port, --ids\n");
        exit(2);
    }
    return port;
}

int main(int count, char **words) {
    struct epoll_event events[MAX_EVENTS];
    int listener = listening(read_options(count, words));
    connections = calloc(MAX_FDS, sizeof *connections);
    variants = calloc((size_t)variant_count, sizeof *variants);
    if (!connections || !variants) die("calloc");
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    watch(listener, EPOLL_CTL_ADD, EPOLLIN);
    watch(timer_fd, EPOLL_CTL_ADD, EPOLLIN);
    for (;;) {
        int ready = epoll_wait(poll_fd, events, MAX_EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            unsigned long long ticks;
            if (fd == listener) accept_all(listener);
            else if (fd == timer_fd) { if (read(timer_fd, &ticks, sizeof ticks) > 0) send_what_is_due(); }
            else {
                if (events[i].events & EPOLLOUT) flush(fd);
                if (connections[fd].is_open && events[i].events & ~(unsigned)EPOLLOUT) read_requests(fd);
            }
        }
        set_timer();
    }
}
