"""Which exact way is cheaper, counted: multiplications and additions of either."""

from __future__ import annotations

import math
from typing import NamedTuple

from .gram import STRIP


class Problem(NamedTuple):
    """Sizes of a call, which gradients it wants, and which Gram matrices are there already."""

    tokens: int
    hidden: int
    teacher_hidden: int
    classes: int
    head_gradient: bool = True
    hidden_gradient: bool = True
    basis: str = "plain"
    grams_known: bool = False
    teacher_gram_known: bool = False


def chunked(problem: Problem) -> int:
    """Both logits, then the gradient by hidden states and by the head."""
    p = problem
    passes = p.hidden * (1 + p.hidden_gradient + p.head_gradient) + p.teacher_hidden
    return 2 * p.tokens * p.classes * passes


def gram(problem: Problem) -> int:
    return gram_of_the_vocabulary(problem) + problem.tokens * gram_of_a_token(problem)


def gram_of_a_token(problem: Problem) -> int:
    p = problem
    other = 0 if p.basis == "shared" else p.teacher_hidden
    cost = p.hidden * (p.hidden + other) + other * other
    return 2 * (cost + (p.hidden * (p.hidden + other) if p.head_gradient else 0))


def gram_of_the_vocabulary(problem: Problem) -> int:
    """What does not depend on the number of tokens: the Gram matrices, and the head's gradient from the moments."""
    p = problem
    other = 0 if p.basis == "shared" else p.teacher_hidden
    cost = 0 if not p.head_gradient else 2 * p.classes * p.hidden * (p.hidden + other)
    if p.grams_known:
        return cost
    if not (p.basis == "shared" and p.teacher_gram_known):
        cost += _symmetric(p.hidden, p.classes)
    cost += 2 * p.classes * p.hidden * other
    if other and not (p.basis == "plain" and p.teacher_gram_known):
        cost += _symmetric(other, p.classes)
    return cost


def _symmetric(width: int, classes: int) -> int:
    strips = -(-width // STRIP)
    return round(2 * classes * width * width * (1 + 1 / strips) / 2)


def break_even(problem: Problem) -> int | None:
    """From how many tokens a step on the Gram way is the cheaper one; None: never.

    >>> break_even(Problem(0, hidden=1024, teacher_hidden=1024, classes=131072, basis="difference"))
    1099
    """
    direct, token = chunked(problem._replace(tokens=1)), gram_of_a_token(problem)
    if direct <= token:
        return None
    return math.ceil(gram_of_the_vocabulary(problem) / (direct - token))


def cheaper(problem: Problem) -> str:
    """``"gram"`` or ``"chunked"``."""
    return "gram" if gram(problem) < chunked(problem) else "chunked"
