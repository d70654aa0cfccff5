"""Raw click logs and graded lists of many formats, prepared as folders that can be trained on."""

from ultr.ingest.preparing import prepare

__all__ = ["prepare"]
