"""What is known of a file beside its stamps: hashes, ffprobe's answer, what could not be done; and
which of it still stands when a record comes.
"""

from __future__ import annotations

import zlib

from .catalog_rows import FileRecord, FileRow, is_same_identity
from .catalog_schema import FLAG_ERROR, FLAG_WHOLE
from .catalog_tallies import MetaRow


class FactTables:
    """The tables `metadata`, `streams` and `file_error` of one transaction."""

    def __init__(self, db, words):
        self.db = db
        self.words = words

    # -- ffprobe's answer ------------------------------------------------------------------------

    def merged_meta(self, row: FileRow, record: FileRecord, old: MetaRow | None,
                    same: bool) -> MetaRow | None:
        """What the row has once the record is applied; `same`: it is the same content version."""
        if record.metadata is not None:
            return self._meta_of(row.id, record.metadata)
        return old if same else None

    def _meta_of(self, file_id: int, metadata: tuple) -> MetaRow:
        duration, container, video_codec, audio_codecs, width, height, bitrate, _ = metadata
        return MetaRow(file_id, duration, self._word_or_none(container),
                       self._word_or_none(video_codec), self._word_or_none(audio_codecs),
                       width, height, bitrate)

    def _word_or_none(self, text: str | None) -> int | None:
        return None if text is None else self.words.id_of(self.db, text)

    def put_meta(self, file_id: int, metadata: tuple) -> MetaRow:
        meta = self._meta_of(file_id, metadata)
        self.db.execute("INSERT OR REPLACE INTO metadata VALUES (?,?,?,?,?,?,?,?)", meta)
        if metadata[7] is None:
            self.db.execute("DELETE FROM streams WHERE file = ?", (file_id,))
        else:
            self.db.execute("INSERT OR REPLACE INTO streams VALUES (?, ?)",
                            (file_id, zlib.compress(metadata[7].encode("utf-8"), 6)))
        return meta

    def drop_meta(self, file_id: int) -> None:
        self.db.execute("DELETE FROM metadata WHERE file = ?", (file_id,))
        self.db.execute("DELETE FROM streams WHERE file = ?", (file_id,))

    def streams_differ(self, row: FileRow, record: FileRecord, old: MetaRow | None,
                       new: MetaRow | None) -> bool:
        """Whether only the streams, which MetaRow does not hold, are other ones."""
        if record.metadata is None or old is None or new != old:
            return False
        packed = self.db.execute("SELECT packed FROM streams WHERE file = ?", (row.id,)).fetchone()
        stored = zlib.decompress(packed[0]).decode("utf-8") if packed else None
        return stored != record.metadata[7]

    # -- what could not be done ------------------------------------------------------------------

    def error_differs(self, row: FileRow, record: FileRecord) -> bool:
        if not row.flags & FLAG_ERROR:
            return record.error is not None
        stored = self.db.execute("SELECT stage, class, message FROM file_error WHERE file = ?",
                                 (row.id,)).fetchone()
        return stored != record.error

    def put_error(self, file_id: int, error: tuple) -> None:
        self.db.execute("INSERT OR REPLACE INTO file_error VALUES (?,?,?,?)", (file_id, *error))

    def update_error(self, row: FileRow, record: FileRecord) -> None:
        if record.error:
            self.put_error(row.id, record.error)
        elif row.flags & FLAG_ERROR:
            self.db.execute("DELETE FROM file_error WHERE file = ?", (row.id,))


def keeps_facts(row: FileRow, record: FileRecord) -> bool:
    """Whether what is known of the row is still true of the record's file. An equal identity with
    another hash by the same recipe is other content: its stamp was put back after an edit.
    """
    if not is_same_identity(row, record):
        return False
    if record.sample_hash is None or row.sample_hash is None or row.algo != record.algo:
        return True
    if row.sample_size == record.sample_size and row.sample_hash != record.sample_hash:
        return False
    return not (row.full_hash and record.full_hash and row.full_hash != record.full_hash)


def merged_facts(row: FileRow, record: FileRecord, same: bool) -> tuple:
    """((algo, sample_size, sample_hash, full_hash), flags) after the record was applied. A record
    that merely lacks a hash erases nothing of the same version.
    """
    brought = (record.algo, record.sample_size, record.sample_hash, record.full_hash)
    if not same:
        return brought, record.whole
    if record.sample_hash is None:
        return row[12:16], row.flags & FLAG_WHOLE
    alike = (row.algo, row.sample_size, row.sample_hash) == brought[:3]
    if alike and record.full_hash is None and not record.whole:
        return row[12:16], row.flags & FLAG_WHOLE
    return brought, record.whole
