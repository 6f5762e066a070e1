"""Tools that compute: a calculator, and Python expressions; nothing that a model writes is executed."""

from tinyllm.inference.tools.base import Tool, ToolError
from tinyllm.utils.expressions import ExpressionError, evaluate


class PythonExpression(Tool):
    """The value of one Python expression on numbers, strings and lists, by a bounded walk over its syntax tree."""

    name = "python_expression"
    description = "Computes a Python expression of numbers, strings and lists; no names, no attributes, no imports."
    numbers_only = False

    def run(self, text: str) -> str:
        try:
            return evaluate(text, numbers_only=self.numbers_only)
        except ExpressionError as error:
            raise ToolError(str(error)) from error


class Calculator(PythonExpression):
    """Arithmetic on numbers: ``+ - * / // % **`` and parentheses."""

    name = "calculator"
    description = "Computes an arithmetic expression of numbers."
    numbers_only = True
