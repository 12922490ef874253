"""What notebooks import: checks that never block, hints, players, one progress bar, the results card.

How a notebook of the course is written: README.md in this folder.
"""

from superb_lite.course.check import carry_on, check, hint
from superb_lite.course.desk import card, preflight, read_card
from superb_lite.course.display import listen, predict, progress, quiz

__all__ = ["card", "carry_on", "check", "hint", "listen", "predict", "preflight", "progress", "quiz", "read_card"]
