"""Numbers from numbers: losses, margins, intervals. Knows nothing of models or campaigns."""
