"""Run by Python as it starts, in the doors that tests start: no torch, as where mtsft alone is installed.

The parity extra brings torch, and tensorboardX imports it wherever it is found, which takes longer than all the rest.
"""

import sys

sys.modules["torch"] = None
