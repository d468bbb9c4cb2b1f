import asyncio

from llmserve import AdmissionConfig, EngineManager, ManagerConfig, Overloaded, TenantLimits, TenantOverloaded, TenantTable

TENANTS = TenantTable(named={"alice": TenantLimits(weight=4), "bob": TenantLimits(concurrency=2)})


async def ask(manager: EngineManager, tenant: str) -> str:
    try:
        await manager.generate("Hello", max_tokens=50, tenant=tenant)
    except TenantOverloaded as error:
        return f"{tenant} is over its own limit; again in {error.retry_after:.1f} s"
    except Overloaded as error:
        return f"the service is full; again in {error.retry_after:.1f} s"
    return f"{tenant} got an answer"


async def main() -> None:
    config = ManagerConfig(admission=AdmissionConfig(max_running=4, tenants=TENANTS))
    async with EngineManager.open(engine="simulated", config=config) as manager:
        asked = [ask(manager, tenant) for tenant in ("alice", "bob") for _ in range(3)]
        print(*await asyncio.gather(*asked), sep="\n")


asyncio.run(main())
