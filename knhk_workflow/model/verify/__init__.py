"""Verification of a workflow before it may run: can every case come to its end, and if not, how does it fail?

Here belong the rules that a net is analysed by (`system`), making them fewer (`reduction`), looking at all markings
(`exploration`), what can be said without that (`coverability`), and what is told to the author (`findings`). Running a
case does not use any of it. Pure, counted in units of work, and the same for the same workflow.
"""

from knhk_workflow.model.verify.budget import VerifyBudget as VerifyBudget
from knhk_workflow.model.verify.verification import Verification as Verification
from knhk_workflow.model.verify.verification import verify as verify
