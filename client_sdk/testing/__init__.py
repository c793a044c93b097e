"""A fake aggregation server for tests of trainers and of programs around the SDK: in memory, no socket, no process.

```python
async def test_my_trainer_learns():
    fake = FakeAggregator()
    run = await fake.start_run(RunSpec(num_rounds=3, round=RoundSpec(quorum=1)), initial_model)
    async with fake.enrolled("alice") as client:
        await participate(client, run.run_id, my_trainer)
    assert better(fake.model(run.run_id))
```
"""

from client_sdk.testing.fake import FakeAggregator

__all__ = ["FakeAggregator"]
