"""What a run needs: memory, hours, disk; estimated before it starts."""

import migr.omni  # noqa: F401  (mends the imports of transformers, so it comes first)
