from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")
for chunk in client.chat.completions.create(model="bundled", messages=[{"role": "user", "content": "Hello!"}], stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
