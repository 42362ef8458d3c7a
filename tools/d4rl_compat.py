"""The module has moved to the top level: import d4rl_compat."""

import sys

import d4rl_compat

sys.modules[__name__] = d4rl_compat
