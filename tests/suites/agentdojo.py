"""AgentDojo's attacks as agents meet them, one JSON object a line: agentdojo.py PACKAGES.

A vector is what tools answer to a task of a person's, with an attack inside, and the calls that the attack is after. The package
wants clients of language models, which are not needed for that: they are left out.
"""

import importlib.abc
import importlib.machinery
import json
import sys
from unittest.mock import MagicMock

sys.path.insert(0, sys.argv[1])

LEFT_OUT = {"anthropic", "click", "cohere", "dotenv", "google", "langchain", "openai", "rich", "tenacity", "torch", "transformers"}
VERSION = "v1.2.2"
MOST = 12_000


class LeftOut(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in LEFT_OUT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__file__ = [], spec, spec.name
        return module

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, LeftOut())

import agentdojo.attacks  # noqa: E402, F401
from agentdojo.agent_pipeline.ground_truth_pipeline import GroundTruthPipeline  # noqa: E402
from agentdojo.attacks.attack_registry import ATTACKS  # noqa: E402
from agentdojo.functions_runtime import FunctionsRuntime  # noqa: E402
from agentdojo.task_suite.load_suites import get_suites  # noqa: E402
from agentdojo.types import get_text_content_as_str  # noqa: E402


class Pipeline:
    name = "gpt-4o-2024-05-13"


def answers(suite, user, injections):
    """What the tools of a task answer."""
    environment = suite.load_and_inject_default_environment(injections)
    *_, messages, _ = GroundTruthPipeline(user).query(user.PROMPT, FunctionsRuntime(suite.tools), environment)
    return [get_text_content_as_str(message["content"]) for message in messages if message["role"] == "tool"]


def vector(suite, attack, user, task):
    injections = attack.attack(user, task)
    good, bad = answers(suite, user, {}), answers(suite, user, injections)
    poisoned = next((n for n, (a, b) in enumerate(zip(good, bad)) if a != b), None)
    if poisoned is None:
        return None
    text = bad[poisoned]
    # The attack begins where the answers part.
    at = next((n for n, (a, b) in enumerate(zip(good[poisoned], text)) if a != b), min(len(good[poisoned]), len(text)))
    begin = max(0, at - MOST // 4)
    calls = task.ground_truth(suite.load_and_inject_default_environment({}))
    return {
        "asked": user.PROMPT,
        "said": text[begin : begin + MOST],
        "calls": [{"name": call.function, "arguments": json.loads(json.dumps(dict(call.args), default=str))} for call in calls],
    }


for name, suite in get_suites(VERSION).items():
    users = list(suite.user_tasks.values())
    for kind, of in ATTACKS.items():
        # That one asks at the keyboard.
        if kind == "manual":
            continue
        attack = of(suite, Pipeline())
        for n, task in enumerate(suite.injection_tasks.values()):
            for user in users[n:] + users[:n]:
                try:
                    found = vector(suite, attack, user, task)
                except ValueError:
                    continue
                if found:
                    print(json.dumps({"suite": name, "attack": kind, "task": task.ID, **found}))
                    break
