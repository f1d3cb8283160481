"""Drawn answers and the ends of answers, through the mesh."""

from mesh import Mesh, answer_of, completion

from llmpq import PlanOptions

PROMPTS = ("Once upon a time", "Lily", "One day, a big dog", "The sun", "Tom and his mom")


def test_a_seed_fixes_the_answer_whatever_the_batching(two_stages: Mesh, stories260k: str) -> None:
    """The same seeds give the same answers one by one and all together; other seeds give others."""
    lines = [
        completion(f"{prompt}-{seed}", prompt, 40, temperature=1.0, top_p=0.95, top_k=50, seed=seed)
        for prompt in PROMPTS
        for seed in (1, 2)
    ]
    one_by_one = PlanOptions(prefill_micro_batch=1, decode_micro_batch=1, num_lanes=1, allowed_schemes=("w16",))
    together = PlanOptions(prefill_micro_batch=3, decode_micro_batch=4, num_lanes=2, allowed_schemes=("w16",))

    first = two_stages.run(lines, model=stories260k, plan_options=one_by_one).texts
    second = two_stages.run(lines[::-1], model=stories260k, plan_options=together).texts

    assert first == second
    assert all(first[f"{prompt}-1"] != first[f"{prompt}-2"] for prompt in PROMPTS)


def test_a_stop_string_ends_the_answer_before_it(two_stages: Mesh, stories260k: str) -> None:
    """The answer is the unbounded one up to the stop string, wherever its tokens lie, and says that it stopped."""
    prompt, stop = "Once upon a time", "play outside"
    lines = [completion("free", prompt, 60), completion("stopped", prompt, 60, stop=["never in a story", stop])]

    finished = two_stages.run(lines, model=stories260k)

    answers = {result.custom_id: answer_of(result) for result in finished.answered}
    free, stopped = answers["free"]["choices"][0], answers["stopped"]["choices"][0]
    assert stop in free["text"]
    assert stopped["text"] == free["text"].partition(stop)[0]
    assert (free["finish_reason"], stopped["finish_reason"]) == ("length", "stop")
    assert answers["stopped"]["usage"]["completion_tokens"] < answers["free"]["usage"]["completion_tokens"]


def test_a_stop_id_ends_the_answer_before_it(two_stages: Mesh, random_llama: str) -> None:
    """A token named by the request ends the answer and is not part of it."""
    exact = PlanOptions(allowed_schemes=("w16",))  # what a random model says hangs on every bit
    free_line = completion("free", [5, 9, 77], 30, ignore_eos=True)
    words = two_stages.run([free_line], model=random_llama, plan_options=exact).texts["free"].split()
    stop = words[10]
    line = completion("stopped", [5, 9, 77], 30, stop_token_ids=[int(stop.removeprefix("w"))], ignore_eos=True)

    stopped = two_stages.run([line], model=random_llama, plan_options=exact).texts["stopped"]

    assert stopped.split() == words[: words.index(stop)]
