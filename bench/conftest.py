"""Makes the helpers of this folder importable under pytest, as they are for its scripts."""

import os
import sys

sys.path.append(os.path.dirname(__file__))
