"""The shapes that the field publishes its data in. Adding a shape is adding one function.

The function's name is the shape's name and its signature says which columns it takes: those without a default must
be there. It returns the fields of a `Prompt`; completions that came with the data are its `given`. What stands after
`*` is no column but an option of the reader.
"""

import inspect
import re
from collections.abc import Callable
from os.path import commonprefix

from stages.prepare.pictures import drawn, shown
from stages.prepare.values import (
    Fault,
    dialogue,
    given,
    last,
    listed,
    message,
    number,
    objects,
    plain,
    rating,
    string,
    truth,
    turns,
    wishes,
)

SHAPES: dict[str, Callable[..., dict]] = {}


def shape(function: Callable[..., dict]) -> Callable[..., dict]:
    """Enter a shape in the table."""
    SHAPES[function.__name__] = function
    return function


def takes(name: str) -> tuple[set[str], set[str]]:
    """The columns that a shape needs, and all that it takes.

    >>> sorted(takes("unpaired")[0])
    ['completion', 'label', 'prompt']
    """
    parameters = [p for p in inspect.signature(SHAPES[name]).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    return {p.name for p in parameters if p.default is p.empty}, {p.name for p in parameters}


def options(name: str) -> set[str]:
    """The options of the reader that a shape heeds.

    >>> options("pick_a_pic")
    {'ties'}
    """
    return {p.name for p in inspect.signature(SHAPES[name]).parameters.values() if p.kind is p.KEYWORD_ONLY}


@shape
def prompt(prompt, answer=None, reference=None, checks=None) -> dict:
    """A prompt with no completion (TRL prompt-only), and what the rewards `exact` and `format` may check."""
    return {"messages": turns(prompt, "prompt"), **wishes(answer, reference, checks)}


@shape
def demonstration(prompt, completion) -> dict:
    """A prompt and a good completion (TRL prompt-completion)."""
    return {"messages": turns(prompt, "prompt"), "given": [given(last(completion, "completion"))]}


@shape
def unpaired(prompt, completion, label) -> dict:
    """A completion that somebody liked or did not (TRL unpaired preference): score 1 or 0."""
    text = last(completion, "completion")
    return {"messages": turns(prompt, "prompt"), "given": [given(text, float(truth(label, "label")))]}


@shape
def stepwise(prompt, completions, labels) -> dict:
    """A solution in steps, each right or wrong (TRL stepwise): joined by line ends, score = share of right steps."""
    steps = [last(step, f"completions.{i}") for i, step in enumerate(listed(completions, "completions"))]
    right = [truth(label, f"labels.{i}") for i, label in enumerate(listed(labels, "labels"))]
    if len(right) != len(steps):
        raise Fault("not one label for each completion", "labels")
    return {"messages": turns(prompt, "prompt"), "given": [given("\n".join(steps), sum(right) / len(right))]}


@shape
def preference(chosen, rejected, prompt=None, score_chosen=None, score_rejected=None, messages=None) -> dict:
    """A chosen and a rejected completion (TRL preference, HH-RLHF, UltraFeedback binarized, RewardBench).

    The prompt may be a column, the start of both dialogues, or both. Two plain strings without a prompt share the
    prompt as their first words. `messages` repeats the chosen dialogue and is not read.
    """
    if prompt is None and plain(chosen) and plain(rejected):
        shared = commonprefix([chosen, rejected])
        prompt = re.match(r"(?s)(?:.*\s)?", shared)[0].rstrip()  # type: ignore[index]  # whole words only
        chosen, rejected = chosen[len(prompt) :].strip(), rejected[len(prompt) :].strip()
    head = [] if prompt is None else turns(prompt, "prompt")
    liked, other = dialogue(head, chosen, "chosen"), dialogue(head, rejected, "rejected")
    if liked == other:
        raise Fault("chosen and rejected are the same", "rejected")
    if len(liked) != len(other) or liked[:-1] != other[:-1]:
        raise Fault("differs from chosen before the last turn", "rejected")
    best, worst = (1.0, 0.0) if score_chosen is None and score_rejected is None else (score_chosen, score_rejected)
    sides = (("chosen", liked, best), ("rejected", other, worst))
    scored = [given(last(said[-1:], name), number(score, f"score_{name}")) for name, said, score in sides]
    return {"messages": liked[:-1], "given": scored}


@shape
def messages(messages, prompt=None, answer=None, reference=None, checks=None) -> dict:
    """A dialogue (TRL conversational): its last turn is the completion if the assistant's."""
    said = turns(messages, "messages")
    if said[-1]["role"] != "assistant":
        return {"messages": said, **wishes(answer, reference, checks)}
    completion = given(last(said[-1:], "messages"))
    return {"messages": said[:-1], "given": [completion], **wishes(answer, reference, checks)}


@shape
def text(text) -> dict:
    """A dialogue in one string; text without turns has no prompt and is refused."""
    if not isinstance(text, str) or plain(text):
        raise Fault("has no 'Human:' and 'Assistant:' turns, hence no prompt", "text")
    return messages(text)


@shape
def ultrafeedback(instruction, completions) -> dict:
    """UltraFeedback: K completions, each scored by the mean of its aspect ratings, else by `overall_score`."""
    answers = []
    for i, row in enumerate(listed(completions, "completions")):
        if not isinstance(row, dict):
            raise Fault("wrong type", f"completions.{i}")
        answers.append(given(last(row.get("response"), f"completions.{i}.response"), rating(row, f"completions.{i}")))
    return {"messages": turns(instruction, "instruction"), "given": answers}


@shape
def alpaca(instruction, output, input=None) -> dict:
    """Alpaca and AlpacaEval: an instruction, its input if any, and one answer."""
    asked = string(instruction, "instruction") + ("\n\n" + string(input, "input") if input else "")
    return {"messages": [message("user", asked, "instruction")], "given": [given(last(output, "output"))]}


@shape
def judged(instruction, output_1, output_2, preference) -> dict:
    """AlpacaEval with a verdict: `preference` from 1 (the first is better) to 2; a tie is a tie, not a fault."""
    second = number(preference, "preference") - 1
    if not 0 <= second <= 1:
        raise Fault("not between 1 and 2", "preference")
    answers = [given(last(output_1, "output_1"), 1 - second), given(last(output_2, "output_2"), second)]
    return {"messages": turns(instruction, "instruction"), "given": answers}


@shape
def mt_bench(question_id, turns, reference=None) -> dict:
    """MT-Bench: the first turn is the prompt. Later turns are asked after its answer and have no place in a Prompt."""
    first, *_ = [message("user", turn, f"turns.{i}") for i, turn in enumerate(listed(turns, "turns"))]
    answer = string(listed(reference, "reference")[0], "reference.0") if reference else ""
    return {"messages": [first], "reference": answer}


@shape
def gsm8k(question, answer) -> dict:
    """GSM8K: the number after `####` is the exact answer; the working before it the reference."""
    end = re.search(r"####\s*(-?[\d,]*\.?\d+)\s*$", string(answer, "answer"))
    if not end:
        raise Fault("does not end in '#### N'", "answer")
    working = re.sub(r"<<[^<>]*>>", "", answer[: end.start()]).strip()
    return {"messages": turns(question, "question"), "answer": end[1].replace(",", ""), "reference": working}


@shape
def parti(Prompt) -> dict:
    """PartiPrompts: a caption to draw."""
    return {"messages": turns(Prompt, "Prompt")}


@shape
def geneval(tag, include, prompt, exclude=None) -> dict:
    """GenEval: a caption to draw, and beside it what a detector must find in the picture and what it must not."""
    wishes = {"include": objects(include, "include")}
    wishes |= {"exclude": objects(exclude, "exclude")} if exclude else {}
    return {"messages": turns(prompt, "prompt"), "checks": wishes}


@shape
def request(request, topics, safe=None, benign=None) -> dict:
    """A request that a policy must refuse, its topics, and perhaps a safe answer; or a benign one and its answer.

    `prepare.attacks` puts it in attack styles; `benign` is false where it is absent.
    """
    about = [string(topic, f"topics.{i}") for i, topic in enumerate(listed(topics, "topics"))]
    checks = {"harmful": benign is None or not truth(benign, "benign"), "topics": about}
    answers = [] if safe is None else [given(last(safe, "safe"), 1.0)]
    return {"messages": turns(request, "request"), "checks": checks, "given": answers}


@shape
def captioned(caption, image, score=None) -> dict:
    """A caption and an image of it, perhaps with a score."""
    rated = None if score is None else number(score, "score")
    return {"messages": turns(caption, "caption"), "given": [shown(drawn(image, "image"), rated)]}


@shape
def image_preference(prompt, chosen_image, rejected_image, score_chosen=None, score_rejected=None) -> dict:
    """A chosen and a rejected image: scores 1 and 0 if not stated."""
    best, worst = (1.0, 0.0) if score_chosen is None and score_rejected is None else (score_chosen, score_rejected)
    liked, other = drawn(chosen_image, "chosen_image"), drawn(rejected_image, "rejected_image")
    if liked == other:
        raise Fault("chosen and rejected are the same", "rejected_image")
    scored = [shown(liked, number(best, "score_chosen")), shown(other, number(worst, "score_rejected"))]
    return {"messages": turns(prompt, "prompt"), "given": scored}


@shape
def pick_a_pic(
    caption,
    jpg_0,
    jpg_1,
    label_0=None,
    label_1=None,
    has_label=None,
    are_different=None,
    best_image_uid=None,
    image_0_uid=None,
    image_1_uid=None,
    *,
    ties="drop",
) -> dict:
    """Pick-a-Pic: two images and which of them a person picked, scores 1 and 0; 0.5 and 0.5 is a tie.

    Ties are refused unless they are to be kept: an objective that learns from pairs must not take one by accident.
    """
    if has_label is not None and not truth(has_label, "has_label"):
        raise Fault("no label", "has_label")
    scores = {name: number(label, name) for name, label in (("label_0", label_0), ("label_1", label_1))}
    for name, score in scores.items():
        if not 0 <= score <= 1:
            raise Fault("not between 0 and 1", name)
    first, second = scores.values()
    for uid, lower in ((image_0_uid, first < second), (image_1_uid, second < first)):
        if lower and uid is not None and uid == best_image_uid:
            raise Fault("names the image that the labels rate lower", "best_image_uid")
    if first == second and ties == "drop":
        raise Fault("tie", "label_0")
    images = [drawn(jpg_0, "jpg_0"), drawn(jpg_1, "jpg_1")]
    if images[0] == images[1] or (are_different is not None and not truth(are_different, "are_different")):
        raise Fault("the two images are the same", "jpg_1")
    return {"messages": turns(caption, "caption"), "given": [shown(i, s) for i, s in zip(images, (first, second))]}
