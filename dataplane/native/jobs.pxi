# Job over src/job.h: one request to one worker. C owns the request, the scatter lists and the
# results; this class keeps the Python objects alive that own the memory.

from cpython.exc cimport PyErr_CheckSignals

cdef extern from "job.h" nogil:
    struct mkv_engine
    struct mkv_group
    enum mkv_job_kind:
        MKV_JOB_EXCHANGE
        MKV_JOB_GET
        MKV_JOB_GET_RANGES
        MKV_JOB_PUT
        MKV_JOB_LOCAL_GET
        MKV_JOB_LOCAL_PUT
        MKV_JOB_RDMA_GET
        MKV_JOB_RDMA_PUT
    struct mkv_item:
        int64_t status
        uint64_t length
        uint32_t source
    struct mkv_job:
        mkv_item *items
        uint32_t item_count
        uint8_t tenant_tag[16]
        uint64_t deadline_ns
        size_t reply_bytes_max
        int is_unread
        void *owner
        int32_t status
        uint8_t *reply
        size_t reply_bytes
        uint8_t *hints
        size_t hints_bytes
        int is_given
    mkv_job *mkv_job_new(mkv_job_kind kind, const uint8_t *frame, size_t frame_bytes,
                         uint64_t deadline_ns, const char **error)
    const char *mkv_job_scatter(mkv_job *job, uint32_t index, const iovec *parts, uint32_t count)
    void mkv_job_release(mkv_job *job)
    struct mkv_wave
    mkv_wave *mkv_wave_new(uint32_t count)
    void mkv_wave_release(mkv_wave *wave)
    void mkv_job_join(mkv_job *job, mkv_wave *wave)
    int mkv_job_wait(mkv_job *job, uint64_t deadline_ns, int hand_over)
    int mkv_job_is_done(mkv_job *job)

cdef extern from "stream.h" nogil:
    uint64_t mkv_monotonic_ns()

cdef extern from "lane.h" nogil:
    void mkv_group_cancel(mkv_group *group, mkv_job *job)

cdef enum:
    SIGNAL_CHECK_NS = 100_000_000  # how long Ctrl-C may go unseen in a wait

# Jobs given to a group stay alive here until they are seen to be done: a lane may write into their
# buffers even when the caller has dropped every reference.
cdef set _live_jobs = set()


cdef class Wave:
    cdef mkv_wave *_wave

    def __cinit__(self, uint32_t count):
        self._wave = mkv_wave_new(count)
        if self._wave == NULL:
            raise MemoryError("no memory for a wave")

    def __dealloc__(self):
        if self._wave != NULL:
            mkv_wave_release(self._wave)


cdef class Job:
    cdef mkv_job *_job
    cdef LaneGroup _group  # that it was given to
    cdef object _owner
    cdef bint _handed_over  # a completion will come
    cdef readonly bint overdue
    cdef public object token

    def __init__(self):
        raise TypeError("make a job with Job.exchange, Job.get, Job.put or another of these")

    def __dealloc__(self):
        if self._job != NULL:
            mkv_job_release(self._job)

    @staticmethod
    def exchange(bytes frame not None, size_t reply_bytes_max, uint64_t deadline_ns, *, token=None):
        cdef Job job = _new_job(MKV_JOB_EXCHANGE, frame, deadline_ns, None, token)
        job._job.reply_bytes_max = reply_bytes_max
        return job

    @staticmethod
    def get(bytes frame not None, scatters, bytes tenant_tag not None, uint64_t deadline_ns, *,
            owner=None, token=None):
        return _new_payload_job(MKV_JOB_GET, frame, scatters, tenant_tag, deadline_ns, owner, token)

    @staticmethod
    def get_one(bytes block_id not None, uintptr_t address, size_t size, bytes tenant_tag not None,
                uint64_t map_epoch, uint32_t map_term, uint64_t deadline_ns):
        return _new_single_job(
            block_id, address, size, tenant_tag, map_epoch, map_term, deadline_ns)

    @staticmethod
    def get_ranges(bytes frame not None, scatters, bytes tenant_tag not None,
                   uint64_t deadline_ns, *, owner=None, token=None):
        return _new_payload_job(
            MKV_JOB_GET_RANGES, frame, scatters, tenant_tag, deadline_ns, owner, token)

    @staticmethod
    def put(bytes frame not None, scatters, bytes tenant_tag not None, uint64_t deadline_ns, *,
            owner=None, token=None):
        return _new_payload_job(MKV_JOB_PUT, frame, scatters, tenant_tag, deadline_ns, owner, token)

    @staticmethod
    def local_get(bytes frame not None, scatters, bytes tenant_tag not None,
                  uint64_t deadline_ns, *, owner=None, token=None):
        return _new_payload_job(
            MKV_JOB_LOCAL_GET, frame, scatters, tenant_tag, deadline_ns, owner, token)

    @staticmethod
    def local_put(bytes frame not None, scatters, bytes tenant_tag not None,
                  uint64_t deadline_ns, *, owner=None, token=None):
        return _new_payload_job(
            MKV_JOB_LOCAL_PUT, frame, scatters, tenant_tag, deadline_ns, owner, token)

    @staticmethod
    def rdma_get(bytes frame not None, scatters, bytes tenant_tag not None,
                 uint64_t deadline_ns, *, owner=None, token=None, bint unread=False):
        cdef Job job = _new_payload_job(
            MKV_JOB_RDMA_GET, frame, scatters, tenant_tag, deadline_ns, owner, token)
        job._job.is_unread = unread
        return job

    @staticmethod
    def rdma_put(bytes frame not None, scatters, bytes tenant_tag not None,
                 uint64_t deadline_ns, *, owner=None, token=None):
        return _new_payload_job(
            MKV_JOB_RDMA_PUT, frame, scatters, tenant_tag, deadline_ns, owner, token)

    cdef int _give(self, LaneGroup group) except -1:
        if self._job.is_given:
            raise ValueError("a job runs once; make another")
        self._job.is_given = 1
        self._job.owner = <void *>self
        self._group = group
        _live_jobs.add(self)
        return 0

    cdef mkv_job *_results(self) except NULL:
        if not self._job.is_given or not mkv_job_is_done(self._job):
            raise RuntimeError("the job is not done; wait for it first")
        return self._job

    @property
    def done(self) -> bool:
        return self._job.is_given and mkv_job_is_done(self._job)

    @property
    def deadline_ns(self) -> int:
        return self._job.deadline_ns

    @property
    def status(self) -> int:
        return self._results().status

    @property
    def statuses(self) -> list:
        cdef mkv_job *job = self._results()
        return [job.items[i].status for i in range(job.item_count)]

    @property
    def first_status(self) -> int:
        if self._results().item_count == 0:
            raise ValueError("the job has no items")
        return self._job.items[0].status

    @property
    def lengths(self) -> list:
        cdef mkv_job *job = self._results()
        return [job.items[i].length for i in range(job.item_count)]

    @property
    def sources(self) -> list:
        cdef mkv_job *job = self._results()
        return [job.items[i].source for i in range(job.item_count)]

    @property
    def hints(self) -> bytes:
        cdef mkv_job *job = self._results()
        return PyBytes_FromStringAndSize(<char *>job.hints, job.hints_bytes)

    @property
    def reply(self) -> bytes:
        cdef mkv_job *job = self._results()
        return PyBytes_FromStringAndSize(<char *>job.reply, job.reply_bytes)

    def wait(self, uint64_t deadline_ns):
        cdef bint done = False
        cdef bint is_last = False
        cdef uint64_t until
        if not self._job.is_given:
            raise ValueError("the job was not given to a lane group")
        while not done and not is_last:
            until = mkv_monotonic_ns() + SIGNAL_CHECK_NS
            is_last = until >= deadline_ns
            with nogil:
                done = mkv_job_wait(self._job, deadline_ns if is_last else until, is_last)
            if not done:
                PyErr_CheckSignals()
        if done:
            if not self._handed_over:
                _live_jobs.discard(self)
        else:
            self._handed_over = True
        return done

    def cancel(self):
        if self._group is not None:
            mkv_group_cancel(self._group._group, self._job)


cdef Job _new_job(mkv_job_kind kind, bytes frame, uint64_t deadline_ns, object owner,
                  object token):
    cdef const char *error
    cdef Job job = Job.__new__(Job)
    job._job = mkv_job_new(kind, <const uint8_t *>PyBytes_AS_STRING(frame),
                           PyBytes_GET_SIZE(frame), deadline_ns, &error)
    if job._job == NULL:
        raise ValueError(f"the request frame is wrong: {error.decode()}")
    job._owner = owner
    job.token = token
    return job


cdef Job _new_single_job(bytes block_id, uintptr_t address, size_t size, bytes tenant_tag,
                         uint64_t map_epoch, uint32_t map_term, uint64_t deadline_ns):
    """What Job.get makes of the frame and the scatter list of one block, without either."""
    cdef uint8_t frame[MKV_SINGLE_GET_BYTES]
    cdef const char *error
    cdef iovec part
    cdef Job job = Job.__new__(Job)
    if PyBytes_GET_SIZE(block_id) != 32 or PyBytes_GET_SIZE(tenant_tag) != 16:
        raise ValueError(
            f"block_id has {len(block_id)} bytes, tenant_tag {len(tenant_tag)}; 32 and 16 wanted")
    mkv_single_get_frame(frame, <const uint8_t *>PyBytes_AS_STRING(block_id), size, map_epoch,
                         map_term)
    job._job = mkv_job_new(MKV_JOB_GET, frame, MKV_SINGLE_GET_BYTES, deadline_ns, &error)
    if job._job == NULL:
        raise ValueError(f"the request frame is wrong: {error.decode()}")
    memcpy(job._job.tenant_tag, PyBytes_AS_STRING(tenant_tag), 16)
    part.iov_base = <void *>address
    part.iov_len = size
    error = mkv_job_scatter(job._job, 0, &part, 1)
    if error != NULL:
        raise ValueError(error.decode())
    return job


cdef Job _new_payload_job(mkv_job_kind kind, bytes frame, object scatters, bytes tenant_tag,
                          uint64_t deadline_ns, object owner, object token):
    cdef Job job = _new_job(kind, frame, deadline_ns, owner, token)
    cdef iovec few[64]
    cdef iovec *parts = few
    cdef Py_ssize_t room = 64
    cdef Py_ssize_t count
    cdef const char *error
    if PyBytes_GET_SIZE(tenant_tag) != 16:
        raise ValueError(f"a tenant tag has 16 bytes, not {len(tenant_tag)}")
    memcpy(job._job.tenant_tag, PyBytes_AS_STRING(tenant_tag), 16)
    if len(scatters) != job._job.item_count:
        raise ValueError(f"{len(scatters)} scatter lists for {job._job.item_count} items")
    try:
        for index, scatter in enumerate(scatters):
            count = len(scatter)
            if count > room:
                if parts != few:
                    free(parts)
                room = count
                parts = <iovec *>malloc(room * sizeof(iovec))
                if parts == NULL:
                    raise MemoryError("no memory for a scatter list")
            count = 0
            for address, length in scatter:
                parts[count].iov_base = <void *><uintptr_t>address
                parts[count].iov_len = <size_t>length
                count += 1
            error = mkv_job_scatter(job._job, index, parts, <uint32_t>count)
            if error != NULL:
                raise ValueError(f"item {index}: {error.decode()}")
    finally:
        if parts != few:
            free(parts)
    return job
