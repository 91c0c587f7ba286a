"""``python -m resilient_heads`` runs the command ``resilient-heads``."""

import sys

from resilient_heads.cli import main

sys.exit(main())
