# Engine and LaneGroup over src/engine.h and src/lane.h.

import collections
import logging
import weakref

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF

cdef extern from "engine.h" nogil:
    mkv_engine *mkv_engine_new()
    void mkv_engine_free(mkv_engine *engine)
    void mkv_engine_abandon(mkv_engine *engine)
    int mkv_engine_event_fd(const mkv_engine *engine)
    void mkv_engine_notify(mkv_engine *engine)
    struct mkv_completion:
        mkv_job *job
        int is_done
    uint32_t mkv_engine_take(mkv_engine *engine, mkv_completion *completions, uint32_t limit)

cdef extern from "lane.h" nogil:
    struct mkv_group_statistics:
        uint64_t jobs_run
        uint64_t jobs_refused
        uint64_t jobs_expired
        uint64_t jobs_timed_out
        uint64_t bytes_received
        uint64_t bytes_sent
        uint64_t items_corrupt
        uint64_t protocol_faults
        uint64_t lanes_added
        uint64_t lanes_lost
    mkv_group *mkv_group_new(mkv_engine *engine, uint32_t lanes_max, uint32_t queue_max,
                             uint64_t grace_ns)
    int mkv_group_close(mkv_group *group)
    void mkv_group_free(mkv_group *group)
    int mkv_group_add_lane(mkv_group *group, mkv_stream *stream)
    void mkv_group_submit(mkv_group *group, mkv_job *job, int notify)
    void mkv_group_run(mkv_group *group, mkv_job *job)
    uint32_t mkv_group_reap(mkv_group *group)
    uint32_t mkv_group_lanes_open(mkv_group *group)
    uint32_t mkv_group_lanes_idle(mkv_group *group)
    int mkv_group_is_quiet(mkv_group *group)
    uint32_t mkv_group_jobs_queued(mkv_group *group)
    void mkv_group_get_statistics(mkv_group *group, mkv_group_statistics *statistics)

cdef extern from "stream.h" nogil:
    struct mkv_fence:
        int (*close)(void *context)
        void (*drop)(void *context)
        void *context
    void mkv_stream_set_fence(mkv_stream *stream, mkv_fence fence)

cdef enum:
    LANES_MAX = 64
    TAKE_MAX = 256         # completions taken in one step
    SWEEP_JOBS_MIN = 1024  # live jobs before looking for those that nobody waited for

LaneStatistics = collections.namedtuple("LaneStatistics", [
    "jobs_run", "jobs_refused", "jobs_expired", "jobs_timed_out", "bytes_received", "bytes_sent",
    "items_corrupt", "protocol_faults", "lanes_added", "lanes_lost",
])

_log = logging.getLogger("memkv.client")

cdef Py_ssize_t _sweep_at = SWEEP_JOBS_MIN

# Closed groups with a job that still awaits its node: they keep their engine and their threads.
cdef set _lingering = set()


cdef void _sweep():
    """Let go of jobs that are done and were never waited for."""
    global _sweep_at
    cdef Job job
    if len(_live_jobs) < _sweep_at:
        return
    for candidate in list(_live_jobs):
        job = candidate
        if not job._handed_over and mkv_job_is_done(job._job):
            _live_jobs.discard(job)
    _sweep_at = max(SWEEP_JOBS_MIN, 2 * len(_live_jobs))


cdef void _let_go_of_lingering():
    cdef LaneGroup group
    for candidate in list(_lingering):
        group = candidate
        if mkv_group_is_quiet(group._group):
            group.close()


cdef int _close_fence(void *context) noexcept with gil:
    try:
        (<object>context)()
    except Exception:
        _log.exception("memory that a node may write could not be taken back; trying again")
        return -1
    return 0


cdef void _drop_fence(void *context) noexcept with gil:
    Py_DECREF(<object>context)


cdef class Engine:
    cdef mkv_engine *_engine
    cdef object _groups  # weak: a group keeps its engine, not the other way round
    cdef bint _closed

    def __cinit__(self):
        self._groups = weakref.WeakSet()
        self._engine = mkv_engine_new()
        if self._engine == NULL:
            raise OSError(c_errno, f"the lane engine cannot start: {os.strerror(c_errno)}")

    def __dealloc__(self):
        if self._engine != NULL:
            with nogil:
                mkv_engine_free(self._engine)

    @property
    def event_fd(self) -> int:
        return mkv_engine_event_fd(self._engine)

    def notify(self):
        mkv_engine_notify(self._engine)

    def completions(self, uint32_t limit):
        cdef mkv_completion taken[TAKE_MAX]
        cdef uint32_t count
        cdef Job job
        cdef list finished = []
        while len(finished) < limit:
            count = mkv_engine_take(self._engine, taken, min(limit - len(finished), TAKE_MAX))
            if count == 0:
                break
            for i in range(count):
                job = <Job>taken[i].job.owner
                job.overdue = not taken[i].is_done
                finished.append(job)
                if taken[i].is_done:
                    _live_jobs.discard(job)
                mkv_job_release(taken[i].job)
        _let_go_of_lingering()
        return finished

    def close(self):
        self._closed = True
        for group in list(self._groups):
            group.close()

    def abandon(self):
        self._closed = True
        mkv_engine_abandon(self._engine)


@cython.no_gc_clear  # the C group needs its engine until it is freed
cdef class LaneGroup:
    cdef mkv_group *_group
    cdef Engine _engine
    cdef readonly str name
    cdef readonly int lanes_max
    cdef object __weakref__

    def __cinit__(self, Engine engine not None, str name not None, int lanes_max,
                  uint32_t queue_max=1024, *, uint32_t grace_ms=0):
        if engine._closed:
            raise ValueError("the engine is closed")
        if not 1 <= lanes_max <= LANES_MAX:
            raise ValueError(f"{lanes_max} lanes are not in 1..{LANES_MAX}")
        self._engine = engine
        self.name = name
        self.lanes_max = lanes_max
        self._group = mkv_group_new(
            engine._engine, lanes_max, queue_max, <uint64_t>grace_ms * 1000000)
        if self._group == NULL:
            raise MemoryError("no memory for a lane group")
        engine._groups.add(self)

    def __dealloc__(self):
        cdef int is_closed
        if self._group != NULL:
            with nogil:
                is_closed = mkv_group_close(self._group)
            if is_closed:
                mkv_group_free(self._group)
            else:  # a lane still awaits its node: what it needs must never go
                Py_INCREF(self._engine)

    @property
    def lanes_open(self) -> int:
        return mkv_group_lanes_open(self._group)

    @property
    def lanes_idle(self) -> int:
        return mkv_group_lanes_idle(self._group)

    @property
    def jobs_queued(self) -> int:
        return mkv_group_jobs_queued(self._group)

    def add_lane(self, lane, fence=None):
        cdef mkv_stream *stream
        cdef int error
        if isinstance(lane, Stream):
            stream = (<Stream>lane)._surrender()
        else:
            stream = mkv_stream_plain(lane)
            if stream == NULL:
                raise OSError(c_errno, f"fd {lane} cannot become a lane: {os.strerror(c_errno)}")
        if fence is not None:
            Py_INCREF(fence)
            mkv_stream_set_fence(stream, mkv_fence(_close_fence, _drop_fence, <void *>fence))
        with nogil:
            error = mkv_group_add_lane(self._group, stream)
        if error == -errno.ENOSPC:
            raise ValueError(f"{self.name} has its {self.lanes_max} lanes already")
        if error == -errno.ESHUTDOWN:
            raise ValueError(f"{self.name} is closed")
        if error:
            raise OSError(-error, f"no lane for {self.name}: {os.strerror(-error)}")

    def submit(self, Job job not None, bint notify=False, Wave wave=None):
        _sweep()
        job._give(self)
        job._handed_over = notify
        if wave is not None:
            mkv_job_join(job._job, wave._wave)
        # With the GIL: queueing takes microseconds, and beside a busy Python thread taking the GIL
        # back takes a switch interval.
        mkv_group_submit(self._group, job._job, notify)

    def run(self, Job job not None):
        _sweep()
        job._give(self)
        with nogil:
            mkv_group_run(self._group, job._job)
        if mkv_job_is_done(job._job):
            _live_jobs.discard(job)

    def reap(self) -> int:
        return mkv_group_reap(self._group)

    def statistics(self):
        cdef mkv_group_statistics now
        mkv_group_get_statistics(self._group, &now)
        return LaneStatistics(
            now.jobs_run, now.jobs_refused, now.jobs_expired, now.jobs_timed_out,
            now.bytes_received, now.bytes_sent, now.items_corrupt, now.protocol_faults,
            now.lanes_added, now.lanes_lost)

    def close(self) -> bool:
        cdef int is_closed
        with nogil:
            is_closed = mkv_group_close(self._group)
        if is_closed:
            _lingering.discard(self)
        else:
            _lingering.add(self)
        return is_closed
