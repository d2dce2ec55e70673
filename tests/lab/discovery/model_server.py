"""llama.cpp's server, which speaks OpenAI's chat completions, with a real model.

    python model_server.py MODEL.gguf        # prints its address; ends when its input does

One thread, no memory of earlier prompts: another process may hold the other core, and an answer
must not depend on what was asked before.
"""

import sys

import xllamacpp


def main() -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.n_ctx = 4096
    parameters.n_parallel = 1
    parameters.n_threads_http = 2
    parameters.port = 0
    parameters.cache_prompt = False
    parameters.endpoint_metrics = True
    for threads in (parameters.cpuparams, parameters.cpuparams_batch):
        threads.n_threads = 1
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)  # noqa: T201 - the parent reads it
    sys.stdin.read()


if __name__ == "__main__":
    main()
