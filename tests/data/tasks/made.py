"""One of each family of tasks."""

from tinyllm.data.tasks.arithmetic import Arithmetic
from tinyllm.data.tasks.functions import Functions
from tinyllm.data.tasks.lookups import Lookups
from tinyllm.data.tasks.problem import Family
from tinyllm.data.tasks.words import Words

FAMILIES: list[Family] = [Arithmetic(), Words(), Lookups(), Functions()]
