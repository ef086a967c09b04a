"""The stand-in's model says what a script or a directive tells it, whatever a client does to the conversation."""

from __future__ import annotations

import json

import httpx

from tests.cortex_scripts import Script, Turn, directives, next_turn, read_script
from tests.cortex_stub import CHAT, CortexStub
from tests.stub.sending import TWO_CALLS, USER, chat, post, result, said, token, tool


def test_a_scripted_session_goes_on_when_parallel_calls_are_split(stub: CortexStub) -> None:
    body = chat(
        '[[tools: Bash ; Bash ; Bash]] [[tools: Bash {"command": "ls"}]] [[then: first]]',
        tools=[tool()],
    )
    seen = []
    for _ in range(3):
        message = post(stub, CHAT, body).json()["choices"][0]["message"]
        made = message["tool_calls"] or []
        seen.append(len(made) or message["content"])
        for call in made:
            body["messages"] += [{"role": "assistant", "tool_calls": [call]}, result(call["id"])]
    assert seen == [3, 1, "first"]
    body["messages"] += [{"role": "assistant", "content": "first"}, {"role": "user", "content": "now what"}]
    assert post(stub, CHAT, body).json()["choices"][0]["message"]["content"] == "You said: now what"
    body["messages"] += [{"role": "assistant", "content": "x"}, {"role": "user", "content": "[[text: new]]"}]
    assert post(stub, CHAT, body).json()["choices"][0]["message"]["content"] == "new"


def test_a_script_answers_by_prompt_or_from_the_start() -> None:
    scripts = read_script([{"when": "fix it", "turns": ["fixing", {"tools": [["Bash", {"a": 1}]]}]}])
    assert next_turn(chat("please fix it"), scripts)[0] == Turn("fixing")
    assert next_turn(chat("something else"), scripts)[0] is None
    assert isinstance(scripts[0], Script)
    assert scripts[0].turns[1].tools[0].input == {"a": 1}
    plain = read_script(["one", "two"])
    later = said(USER, {"role": "assistant", "content": "one"}, USER)
    assert [next_turn(body, plain)[0] for body in (chat(), later)] == [Turn("one"), Turn("two")]


def test_side_calls_of_claude_code_do_not_take_a_turn() -> None:
    title = said({"role": "system", "content": "You are Claude Code. Write a title."}, *chat(TWO_CALLS)["messages"])
    assert next_turn(title, read_script(["one"]))[0] is None


def test_directives_may_hold_directives_for_a_sub_agent() -> None:
    inner = '[[tools: Bash {"command": "ls"}]] [[then: inner]]'
    (outer, last) = directives(f"[[tools: Task {json.dumps({'prompt': inner})}]] [[then: outer]]")
    assert outer.tools[0].input["prompt"] == inner
    assert last.text == "outer"


def test_a_held_stream_waits_for_its_release(stub: CortexStub) -> None:
    body = chat("[[hold: 2]] [[stream: 10]]", stream=True)
    bearer = {"Authorization": f"Bearer {token()}"}
    with httpx.stream("POST", stub.url + CHAT, json=body, headers=bearer, timeout=20) as response:
        stub.wait_for(lambda record: record.get("held"))
        assert not stub.requests[0].get("done")
        stub.release()
        assert response.read().endswith(b"data: [DONE]\n\n")


def test_a_turn_s_error_comes_as_often_as_it_says(stub: CortexStub) -> None:
    body = chat('[[error: too_many {"times": 2}]] [[text: at last]]')
    assert [post(stub, CHAT, body).status_code for _ in range(3)] == [429, 429, 200]
