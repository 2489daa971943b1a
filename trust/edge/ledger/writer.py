"""Makes records durable, in its own thread: all that is queued is one write and one fdatasync.

The tree follows in the keeper's thread (`keeper.py`), while the disk is busy with the next batch.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from trust import limits
from trust.edge.ledger.batch import Batch, unavailable
from trust.edge.ledger.intake import Intake, Pace
from trust.edge.ledger.keeper import Keeper, SignJob
from trust.edge.ledger.segments import Segment

logger = logging.getLogger(__name__)


class Writer:
    """The thread that writes records."""

    def __init__(
        self,
        directory: Path,
        intake: Intake,
        keeper: Keeper,
        pace: Pace,
        *,
        segment: Segment | None,
        note: Callable[[bytes], None],
    ) -> None:
        """Start the thread; `segment` is where to go on, `note` is told each new checkpoint."""
        self._directory, self._intake, self._keeper, self._pace = directory, intake, keeper, pace
        self._segment, self._note = segment, note
        self._thread = threading.Thread(target=self._run, name="egm-ledger", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Return when the thread has ended and its file is closed."""
        self._thread.join()
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except Exception as error:
            logger.exception("the ledger %s cannot be written", self._directory)
            self._intake.fail(error)
        self._keeper.put(None)

    def _step(self) -> bool:
        """Write what is queued, sign if it is time; return whether to go on."""
        work = self._intake.take(self._pace)
        if work is None:
            return False
        if work.batch.digests:
            self._write(work.batch)
            self._intake.written(work.batch)
            self._keeper.put(work.batch.digests)
        if work.sign:
            wanted = work.wanted

            def done(note: bytes) -> None:
                self._note(note)
                self._intake.signed(wanted, note)

            self._keeper.put(SignJob(done))
        return not work.last

    def _write(self, batch: Batch) -> None:
        """Write and sync the batch; one that fills a segment goes on in the next."""
        index, end = batch.first, batch.first + batch.count
        while index < end:
            segment = self._segment_for(index)
            upto = min(end, index - index % limits.LEDGER_SEGMENT_RECORDS + limits.LEDGER_SEGMENT_RECORDS)
            frames = batch.frames
            if upto - index < batch.count:
                frames = frames[2 * (index - batch.first) : 2 * (upto - batch.first)]
            segment.write(index, b"".join(frames))
            segment.sync()
            index = upto

    def _segment_for(self, index: int) -> Segment:
        """The segment that record `index` goes to. All earlier ones are complete and durable."""
        if self._segment is not None and index % limits.LEDGER_SEGMENT_RECORDS:
            return self._segment
        if self._segment is not None:
            self._segment.close()
            self._segment = None
        self._keeper.wait_sealed(index - limits.LEDGER_SEGMENT_RECORDS)
        if self._intake.failure is not None:
            raise unavailable(self._intake.failure)
        self._segment = Segment.create(self._directory, index)
        return self._segment
