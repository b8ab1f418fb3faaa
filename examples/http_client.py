"""Speak through OpenAI's client, with a server of this machine.

    pip install 'bark-fast[serve]' openai
    python examples/http_client.py [FOLDER]

Starts `bark-fast serve` for as long as it runs. Writes one.mp3, and long.wav sentence by sentence.
"""

import socket
import subprocess
import sys
from pathlib import Path

from openai import OpenAI

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
TEXT = "The weather is nice. We will go to the garden. The children play with a small dog."

with socket.create_server(("127.0.0.1", 0)) as probe:
    port = str(probe.getsockname()[1])  # one that is free
with subprocess.Popen([sys.executable, "-m", "bark_fast", "serve", "--port", port]) as server:
    try:
        url = f"http://127.0.0.1:{port}/v1"
        # It takes seconds to start, and answers 503 while it loads: the client tries again.
        client = OpenAI(base_url=url, api_key="none is asked for", max_retries=20)
        voice = "nova"  # OpenAI's names stand for the model's own voices

        hello = client.audio.speech.create(
            model="tts-1", voice=voice, input="Hello, my dog is cute.", extra_body={"seed": 7}
        )
        hello.write_to_file(folder / "one.mp3")

        with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice=voice, input=TEXT, response_format="wav", extra_body={"seed": 7}
        ) as answer:
            answer.stream_to_file(folder / "long.wav")
    finally:
        server.terminate()
