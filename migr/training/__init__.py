"""Training on TRL. Importing anything here first mends the imports of transformers and trl (see migr.omni)."""

import migr.omni  # noqa: F401
