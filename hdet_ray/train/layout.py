"""Names inside a run's storage.

Every Ray checkpoint of a run holds ours in a folder of its own, beside whatever the user reports:

    <storage_path>/<run name>/
        checkpoint_<time>/hdet/     one checkpoint (`hdet_ray.train.checkpoints`)
        hdet_ledger.jsonl           one line a round
        hdet-checkpoint-index.json  copy of Ray's index of checkpoints (`hdet_ray.train.index_copy`)
        hdet-attempts/<n>.json      each start of a job's run, and the driver that it belongs to
        hdet-pinned/<name>/hdet/    the checkpoint that an operator's rollback goes back to
"""

from __future__ import annotations

HDET_FOLDER = "hdet"
LEDGER_FILE = "hdet_ledger.jsonl"
INDEX_COPY_FILE = "hdet-checkpoint-index.json"
ATTEMPTS_FOLDER = "hdet-attempts"
PINNED_FOLDER = "hdet-pinned"
