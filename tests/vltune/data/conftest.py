"""Answer files for the readers."""

import sys
from pathlib import Path

# Helpers beside the tests, which importlib mode does not find by itself.
sys.path.append(str(Path(__file__).parent))
