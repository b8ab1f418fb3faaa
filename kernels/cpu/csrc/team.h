/* Threads that share work. A program of operations runs phase by phase; a phase is pieces in any
 * order, and whoever is free takes the next. Nobody waits for a thread, only for pieces: one that
 * the system has put aside, because something else wants its core, holds up the piece it is at and no
 * more. Who ends a phase's last piece begins the next phase; who finds no piece looks for one for some
 * microseconds and then sleeps. (OpenMP gives each thread its share beforehand, and its barriers spin
 * for milliseconds: beside other work that took several times what the lost share of a core explains.)
 *
 * Each calling thread has a team of its own. Included by native.c, which says what operations are. */
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    PIECES_A_THREAD = 16,      /* at most: what the last one to end may keep the others waiting */
    LEAST_BYTES = 24 * 1024,   /* of a piece: two microseconds, against a tenth for taking one */
    SPINS = 2000,              /* some 50 microseconds: from one step of decoding to the next */
    MOST_THREADS = 1024,
};

/* An operation under way. */
typedef struct {
    const i64 *operation;
    i64 phase, pieces, threads;
    char *shared, *own; /* memory for results in between: of all threads; of each, own_bytes apart */
    i64 own_bytes;
    char *memory;
    i64 held;
} Work;

/* Of an operation, by native.c: pieces of the phase that work->phase names (0: nothing is to be done;
 * -1: no memory), and one of them. */
static i64 phases_of(const i64 *operation);
static i64 pieces_of_phase(Work *work);
static void do_piece(const Work *work, i64 piece, i64 thread);

/* Provide memory until the operation ends, 64 bytes aligned; -1 if there is none. */
static int reserve(Work *work, i64 shared_bytes, i64 own_bytes) {
    shared_bytes = ceil_div(shared_bytes, 64) * 64;
    own_bytes = ceil_div(own_bytes, 64) * 64;
    const i64 bytes = shared_bytes + work->threads * own_bytes;
    if (bytes > work->held) {
        free(work->memory);
        work->held = ceil_div(bytes + bytes / 2, 64) * 64;
        work->memory = aligned_alloc(64, work->held);
        if (!work->memory) return work->held = 0, -1;
    }
    work->shared = work->memory;
    work->own = work->memory + shared_bytes;
    work->own_bytes = own_bytes;
    return 0;
}

/* How many pieces `items` make that take as long as reading so many bytes each. */
INLINE i64 in_pieces(const Work *work, i64 items, i64 bytes) {
    const i64 most = min_of(items, PIECES_A_THREAD * work->threads);
    return min_of(most, max_of(1, items * bytes / LEAST_BYTES));
}

/* The first of the items of a piece; the next piece's first is behind its last. */
INLINE i64 first_item(const Work *work, i64 items, i64 piece) { return piece * items / work->pieces; }

typedef struct {
    /* The phase's number, which sleepers watch, its pieces, and the next to be taken, in 32, 16 and 16
     * bits, so that no piece is ever taken of a phase that is over. No pieces: the program is over. */
    _Atomic uint64_t turn;
    _Atomic i64 undone;               /* pieces */
    _Atomic uint32_t asleep, woken;   /* the last phases in which somebody fell asleep, was woken */
    _Atomic int ending;
    i64 left;                         /* operations */
    int failed;
    Work work;
    i64 workers, asked; /* threads beside the calling one: there are, and were asked for */
    pthread_t threads[MOST_THREADS];
    struct Member { void *team; i64 thread; } members[MOST_THREADS];
} Team;

INLINE uint32_t *phase_of(Team *team) { return (uint32_t *)&team->turn + 1; } /* x86 has it behind */

INLINE int is_later(uint32_t a, uint32_t b) { return (int32_t)(a - b) > 0; } /* numbers start anew */

static void wait_for_phase(Team *team, uint32_t after) {
    for (int i = 0; i < SPINS; i++) {
        if (team->turn >> 32 != after) return;
        __builtin_ia32_pause();
    }
    uint32_t last = team->asleep;
    while (is_later(after, last) && !atomic_compare_exchange_weak(&team->asleep, &last, after)) {}
    syscall(SYS_futex, phase_of(team), FUTEX_WAIT_PRIVATE, after, NULL, NULL, 0);
}

/* Begin a phase. `wake` says whether somebody who sleeps has to know. */
static void publish(Team *team, i64 pieces, int wake) {
    const uint32_t phase = (team->turn >> 32) + 1;
    team->undone = pieces;
    /* Now and then, so that neither falls so far behind that later ones look earlier; nobody can have
     * fallen asleep in this phase yet. */
    if (!(phase << 2)) team->asleep = phase;
    team->turn = (uint64_t)phase << 32 | (uint64_t)pieces << 16;
    /* From here on the calling thread may begin another program. */
    if (!wake || is_later(team->woken, team->asleep)) return;
    team->woken = phase;
    syscall(SYS_futex, phase_of(team), FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* Begin what comes after the phase that is over; what is one piece is done at once. */
static void next_phase(Team *team, i64 thread) {
    Work *work = &team->work;
    for (;;) {
        if (++work->phase >= phases_of(work->operation)) {
            if (!--team->left) break;
            work->operation += WORDS;
            work->phase = 0;
        }
        work->pieces = pieces_of_phase(work);
        if (work->pieces < 0) {
            team->failed = -1;
            break;
        }
        if (work->pieces > 1 && team->workers) return publish(team, work->pieces, 1);
        for (i64 i = 0; i < work->pieces; i++) do_piece(work, i, thread);
    }
    publish(team, 0, thread > 0);
}

/* Do a piece, if there is one. */
static int take_piece(Team *team, uint64_t turn, i64 thread) {
    const uint64_t piece = turn & 0xFFFF;
    if (piece >= (turn >> 16 & 0xFFFF)) return 0;
    if (!atomic_compare_exchange_weak(&team->turn, &turn, turn + 1)) return 1;
    do_piece(&team->work, piece, thread);
    if (atomic_fetch_sub(&team->undone, 1) == 1) next_phase(team, thread);
    return 1;
}

static void *work_in_team(void *member) {
    Team *team = ((struct Member *)member)->team;
    const i64 thread = ((struct Member *)member)->thread;
    __builtin_ia32_ldmxcsr(0x1F80); /* as a process starts: numbers too small to be normal are kept */
    for (;;) {
        const uint64_t turn = team->turn; /* read before `ending`, which is set before its phase begins */
        if (team->ending) return NULL;
        if (!take_piece(team, turn, thread)) wait_for_phase(team, turn >> 32);
    }
}

static void send_home(Team *team) {
    team->ending = 1;
    publish(team, 0, 1);
    for (i64 i = 0; i < team->workers; i++) pthread_join(team->threads[i], NULL);
    team->ending = team->workers = 0;
}

static void end_team(void *own) {
    Team *team = own;
    send_home(team);
    free(team->work.memory);
    free(team);
}

static pthread_key_t team_key;
static pthread_once_t team_once = PTHREAD_ONCE_INIT;
static int has_team_key;

/* A fork copies no thread but the one that calls it. */
static void forget_workers(void) {
    Team *team = has_team_key ? pthread_getspecific(team_key) : NULL;
    if (team) team->workers = 0, team->asked = -1;
}

static void make_team_key(void) {
    has_team_key = !pthread_atfork(NULL, NULL, forget_workers) && !pthread_key_create(&team_key, end_team);
}

/* The calling thread's team, of so many; of fewer where the system has no more. */
static Team *team_of(i64 threads) {
    pthread_once(&team_once, make_team_key);
    if (!has_team_key) return NULL;
    Team *team = pthread_getspecific(team_key);
    if (!team) {
        team = calloc(1, sizeof *team);
        if (!team || pthread_setspecific(team_key, team)) return free(team), NULL;
        team->asked = -1;
    }
    threads = max_of(1, min_of(threads, MOST_THREADS));
    if (team->asked == threads - 1) return team;
    send_home(team);
    sigset_t all, before; /* signals are for the threads that know them */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    team->asked = threads - 1;
    for (i64 i = 0; i < team->asked; i++) {
        team->members[i] = (struct Member){team, i + 1};
        if (pthread_create(&team->threads[i], NULL, work_in_team, &team->members[i])) break;
        team->workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    team->work.threads = team->workers + 1;
    return team;
}

/* Run n operations of WORDS 64-bit words each, one after another. */
int run(const i64 *operations, i64 n, i64 threads) {
    Team *team = team_of(threads);
    if (!team) return -1;
    if (n <= 0) return 0;
    team->failed = 0;
    team->left = n;
    team->work.operation = operations;
    team->work.phase = -1;
    next_phase(team, 0);
    for (uint64_t turn; (turn = team->turn) & 0xFFFF0000;)
        if (!take_piece(team, turn, 0)) wait_for_phase(team, turn >> 32);
    return team->failed;
}
