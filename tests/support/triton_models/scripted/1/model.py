"""A model for Triton's Python backend that does what its prompt says, as JSON. It answers any other prompt with it.

The members of a script: `pieces`, the texts of the answer; `bytes`: each byte is sent by itself; `cumulative`: each
response repeats the text before it; `gate`: nothing is sent before a request opens the gate of this name; `endless`:
the last piece is repeated until the request is cancelled; `fail_after`: an error with the text `message` after this
number of responses. `open` opens a gate, and `report` returns what the model has seen.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.environ["TRITON_MODEL_PACKAGES"])

import json
import threading
from collections import defaultdict

import numpy as np
import triton_python_backend_utils as pb_utils

INPUTS = (
    "text_input", "stream", "sampling_parameters", "exclude_input_in_output", "return_finish_reason",
    "return_num_input_tokens", "return_num_output_tokens", "max_tokens", "temperature", "seed", "stop_words",
)  # fmt: skip
POLL_S = 0.005


class TritonPythonModel:
    def initialize(self, args):
        self.gates = defaultdict(threading.Event)
        self.seen = {"requests": 0, "cancelled": 0, "inputs": {}, "parameters": {}}
        self.lock = threading.Lock()

    def execute(self, requests):
        for request in requests:
            # Inputs can be read only here: their memory is reused after the return.
            inputs = {name: values for name in INPUTS if (values := self.read(request, name)) is not None}
            parameters = json.loads(request.parameters())
            sender = request.get_response_sender()
            threading.Thread(target=self.answer, args=(inputs, parameters, sender), daemon=True).start()

    def read(self, request, name):
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            return None
        values = [value.decode() if isinstance(value, bytes) else value for value in tensor.as_numpy().tolist()]
        return values if name == "stop_words" else values[0]

    def answer(self, inputs, parameters, sender):
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if "text_input" not in inputs:  # Triton compares only the number of inputs
            error = pb_utils.TritonError("text_input is missing")
            sender.send(pb_utils.InferenceResponse(error=error), flags=final)
            return
        try:
            script = json.loads(inputs["text_input"])
        except ValueError:
            script = {"pieces": [inputs["text_input"]]}
        if "open" in script:
            self.gates[script["open"]].set()
            script = {"pieces": ["opened"]}
        elif "report" in script:
            with self.lock:
                script = {"pieces": [json.dumps(self.seen)]}
        else:
            with self.lock:
                self.seen["requests"] += 1
                self.seen |= {"inputs": inputs, "parameters": parameters}
        if "gate" in script:
            self.gates[script["gate"]].wait(60)
        texts = [piece.encode() for piece in script.get("pieces", ())]
        if script.get("bytes"):
            texts = [bytes([byte]) for text in texts for byte in text]
        if script.get("cumulative"):
            texts = [b"".join(texts[: count + 1]) for count in range(len(texts))]
        count = 0
        while count < len(texts) or script.get("endless"):
            if sender.is_cancelled():
                with self.lock:
                    self.seen["cancelled"] += 1
                sender.send(flags=final)
                return
            if count == script.get("fail_after"):
                break
            last = count == len(texts) - 1 and not script.get("endless")
            sender.send(self.response(texts[min(count, len(texts) - 1)], inputs, script, last=last))
            count += 1
            if count >= len(texts):
                threading.Event().wait(POLL_S)
        if "fail_after" in script:
            error = pb_utils.TritonError(script["message"])
            sender.send(pb_utils.InferenceResponse(error=error), flags=final)
        else:
            sender.send(flags=final)

    def response(self, text, inputs, script, *, last):
        outputs = [pb_utils.Tensor("text_output", np.array([text], dtype=np.object_))]
        if inputs.get("return_finish_reason"):
            reason = script.get("finish", "stop") if last else "None"
            outputs.append(pb_utils.Tensor("finish_reason", np.array([reason], dtype=np.object_)))
        if inputs.get("return_num_input_tokens"):
            outputs.append(pb_utils.Tensor("num_input_tokens", np.array([7], dtype=np.uint32)))
        if inputs.get("return_num_output_tokens"):
            outputs.append(pb_utils.Tensor("num_output_tokens", np.array([1], dtype=np.uint32)))
        return pb_utils.InferenceResponse(outputs)
