import threading

from anyio.from_thread import start_blocking_portal

from llmserve import Completion, EngineManager


def main() -> None:
    with start_blocking_portal() as portal:  # a thread with an event loop
        manager = portal.call(lambda: EngineManager.open(engine="simulated"))
        with portal.wrap_async_context_manager(manager):
            answers: list[Completion] = []

            def ask(prompt: str) -> None:  # runs in any thread: a worker of Flask, of a thread pool, of a GUI
                answers.append(portal.call(lambda: manager.generate(prompt, max_tokens=8)))

            threads = [threading.Thread(target=ask, args=(f"Question {number}",)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            print(len(answers), "answers")


if __name__ == "__main__":
    main()
