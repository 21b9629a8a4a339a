"""The list of jobs, over HTTP and in a browser: who sees what, filters, pages, actions, export."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import httpx
import pytest
from playwright.async_api import expect

from tests.e2e.console.test_protection import sign_in, token_of
from tests.support.console import BROWSER_TESTS, Visit, accessibility_faults, create_key
from tests.support.stack import Stack

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}\"' javascript:alert(3)"


def submit(stack: Stack, key: str, **body: Any) -> str:
    """Submit a job; returns its id. It ends soon, unless it is for `orphan`, which has no worker."""
    headers = {"Authorization": f"Bearer {key}", "Prefer": "wait=20" if body["model"] != "orphan" else ""}
    body = {"prompt": "x", "max_tokens": 4, **body}
    response = httpx.post(f"{stack.url}/v1/jobs", json=body, headers=headers, timeout=30)
    assert response.status_code in (200, 202), response.text
    return str(response.json()["id"])


def cancel(stack: Stack, key: str, job: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    httpx.post(f"{stack.url}/v1/jobs/{job}/cancel", headers=headers).raise_for_status()


def status_of(stack: Stack, key: str, job: str) -> str:
    headers = {"Authorization": f"Bearer {key}"}
    return str(httpx.get(f"{stack.url}/v1/jobs/{job}", headers=headers).json()["status"])


@pytest.fixture(scope="module")
def stranger_key(sim_stack: Stack) -> str:
    """A key of another project."""
    return create_key(sim_stack, "stranger", "inference")


def test_a_stranger_sees_no_jobs_of_others(
    sim_stack: Stack, member_key: str, stranger_key: str, operator_key: str
) -> None:
    job = submit(sim_stack, member_key, model="orphan")
    with sign_in(sim_stack, stranger_key) as stranger:
        assert job not in stranger.get("jobs").text
        csrf = {"csrf_token": token_of(stranger)}
        for path in ("", "/live", "/raw/output", "/raw/request", "/raw/body", "/raw/events", "?tab=request"):
            assert stranger.get(f"jobs/{job}{path}").status_code == 404
        for action in ("cancel", "replay"):
            assert stranger.post(f"jobs/{job}/{action}", data=csrf).status_code == 404
            results = stranger.post("jobs/selected", data={**csrf, "action": action, "job": [job]})
            assert "There is no job" in results.text
        assert stranger.get("jobs", params={"project": "member"}).status_code == 403
        assert stranger.get("jobs/export", params={"project": "member"}).status_code == 403
    assert status_of(sim_stack, member_key, job) == "queued"
    with sign_in(sim_stack, operator_key) as operator:
        assert job in operator.get("jobs", params={"project": "member"}).text
        assert operator.get(f"jobs/{job}").status_code == 200
        assert operator.post(f"jobs/{job}/cancel", data={"csrf_token": token_of(operator)}).status_code == 303
    assert status_of(sim_stack, member_key, job) == "cancelled"


def test_changes_need_the_inference_scope_and_the_token(sim_stack: Stack, member_key: str) -> None:
    job = submit(sim_stack, member_key, model="orphan")
    with sign_in(sim_stack, create_key(sim_stack, "auditor", "admin")) as auditor:
        page = auditor.get(f"jobs/{job}").text
        assert ">Replay<" not in page
        csrf = {"csrf_token": token_of(auditor)}
        assert auditor.post(f"jobs/{job}/cancel", data=csrf).status_code == 403
        assert auditor.post("jobs/selected", data={**csrf, "action": "cancel", "job": job}).status_code == 403
    with sign_in(sim_stack, member_key) as member:
        assert member.post(f"jobs/{job}/cancel").status_code == 403
        assert status_of(sim_stack, member_key, job) == "queued"
        assert member.post(f"jobs/{job}/cancel", data={"csrf_token": token_of(member)}).status_code == 303


def test_a_replay_by_an_operator_stays_in_the_project(sim_stack: Stack, member_key: str, operator_key: str) -> None:
    job = submit(sim_stack, member_key, model="sim", user="ann")
    with sign_in(sim_stack, operator_key) as operator:
        response = operator.post(f"jobs/{job}/replay", data={"csrf_token": token_of(operator)})
    (replayed,) = re.findall(r"job_[0-9a-f]{32}", response.headers["location"])
    found = httpx.get(f"{sim_stack.url}/v1/jobs/{replayed}", headers={"Authorization": f"Bearer {member_key}"}).json()
    assert (found["metadata"], found["user"]) == ({"replay_of": job}, "ann")


@pytest.mark.parametrize("path", ["jobs?q=%22", "jobs?status=none", "jobs?key=x", "jobs?after=job_x", "jobs?meta=x"])
def test_what_is_malformed_is_explained_on_the_page(sim_stack: Stack, operator_key: str, path: str) -> None:
    with sign_in(sim_stack, operator_key) as operator:
        response = operator.get(path)
    assert response.status_code == 400
    assert 'role="alert"' in response.text


def test_words_lead_to_jobs_and_to_lists(sim_stack: Stack, operator_key: str) -> None:
    job = f"job_{'0' * 32}"
    with sign_in(sim_stack, operator_key) as operator:
        for words, target in (
            (f" {job} ", f"jobs/{job}"),
            ("status:failed meta.a=b", "jobs?status=failed&meta=a%3Db"),
            ("", "jobs"),
        ):
            response = operator.get("jobs", params={"q": words})
            assert response.status_code == 303
            assert response.headers["location"].endswith(f"/{target}")


def test_texts_of_clients_and_models_are_texts(sim_stack: Stack, member_key: str, operator_key: str) -> None:
    job = submit(
        sim_stack,
        member_key,
        model="sim",
        prompt=None,
        messages=[{"role": "user", "content": HOSTILE, "name": HOSTILE}],
        user=HOSTILE,
        metadata={HOSTILE[:60]: HOSTILE},
    )
    with sign_in(sim_stack, operator_key) as operator:
        paths = (f"jobs/{job}", f"jobs/{job}?tab=request", f"jobs/{job}?tab=events", "jobs")
        for path in (*paths, *(f"jobs?{name}={httpx.QueryParams({'x': HOSTILE})['x']}" for name in ("q", "user"))):
            text = operator.get(path).text
            assert "<script>alert" not in text
            assert "<img src=x" not in text
        for what in ("output", "request", "body", "events"):
            response = operator.get(f"jobs/{job}/raw/{what}")
            assert response.headers["content-type"] == "text/plain; charset=utf-8"
            assert response.headers["x-content-type-options"] == "nosniff"


def test_an_export_has_what_the_list_has(sim_stack: Stack, member_key: str) -> None:
    jobs = [
        submit(sim_stack, member_key, model="sim", metadata={"export": "yes"}, user="=SUM(A1)", prompt=str(index))
        for index in range(3)
    ]
    with sign_in(sim_stack, member_key) as member:
        parameters = {"meta": "export=yes"}
        lines = member.get("jobs/export", params={**parameters, "file_format": "jsonl"})
        found = [json.loads(line) for line in lines.text.splitlines()]
        assert [one["id"] for one in found] == jobs[::-1]
        assert {one["project"] for one in found} == {"member"}
        table = member.get("jobs/export", params=parameters)
        assert table.headers["content-type"] == "text/csv; charset=utf-8"
        assert "attachment" in table.headers["content-disposition"]
        rows = list(csv.DictReader(io.StringIO(table.text)))
        assert [row["id"] for row in rows] == jobs[::-1]
        assert {(row["user"], row["metadata"], row["status"]) for row in rows} == {
            ("'=SUM(A1)", "export=yes", "incomplete")
        }


def test_too_many_jobs_at_once_are_refused(sim_stack: Stack, member_key: str) -> None:
    """All of them: the rest would stay as it is without a word."""
    jobs = [submit(sim_stack, member_key, model="orphan"), *(f"job_{number:032x}" for number in range(100))]
    with sign_in(sim_stack, member_key) as member:
        fields = {"csrf_token": token_of(member), "action": "cancel", "job": jobs}
        response = member.post("jobs/selected", data=fields)
    assert response.status_code == 400
    assert "At most 100 jobs" in response.text
    assert status_of(sim_stack, member_key, jobs[0]) == "queued"
    cancel(sim_stack, member_key, jobs[0])


class TestInABrowser:
    pytestmark = BROWSER_TESTS

    async def test_filter_page_and_open(self, member: Visit, sim_stack: Stack, member_key: str) -> None:
        for index in range(32):
            submit(sim_stack, member_key, model="sim", metadata={"case": "pages"}, prompt=str(index), max_tokens=1)
        rows = member.page.locator("[data-row]")
        await member.open("jobs")
        await member.page.keyboard.press("/")
        await member.page.keyboard.type("meta.case=pages")
        await member.page.keyboard.press("Enter")
        await member.page.wait_for_url("**/console/jobs?meta=case%3Dpages")
        await expect(rows).to_have_count(30)
        await member.page.get_by_role("link", name="Older").click()
        await expect(rows).to_have_count(2)
        await member.page.get_by_role("link", name="Newest").click()
        await expect(rows).to_have_count(30)
        await member.page.get_by_role("link", name="Failed", exact=True).click()
        await expect(member.page.get_by_role("heading", name="No job matches")).to_be_visible()
        await expect(member.page.locator(".selection-all")).to_be_hidden()
        await member.go_back("jobs?meta=case%3Dpages")
        await member.page.keyboard.press("j")
        await member.page.keyboard.press("j")
        second = await rows.nth(1).get_attribute("id")
        await member.page.keyboard.press("Enter")
        await member.page.wait_for_url(f"**/console/jobs/{str(second).removeprefix('row-')}")

    async def test_the_focus_stays_while_rows_change(self, member: Visit, sim_stack: Stack, member_key: str) -> None:
        """Otherwise Enter does nothing, and `j` begins at the first row again."""
        jobs = [submit(sim_stack, member_key, model="orphan", metadata={"case": "focus"}) for _ in range(3)]
        await member.open("jobs?meta=case%3Dfocus")
        await expect(member.page.locator("#live")).to_have_attribute("data-state", "live")
        await member.page.keyboard.press("j")
        await member.page.keyboard.press("j")
        for job in jobs:
            cancel(sim_stack, member_key, job)
            await expect(member.page.locator(f"#row-{job}")).to_contain_text("Cancelled")
            await expect(member.page.locator(f"#row-{jobs[1]} a")).to_be_focused()
        await member.page.keyboard.press("Enter")
        await member.page.wait_for_url(f"**/console/jobs/{jobs[1]}")

    async def test_rows_change_and_the_selection_stays(self, member: Visit, sim_stack: Stack, member_key: str) -> None:
        first = submit(sim_stack, member_key, model="orphan", metadata={"case": "select"})
        await member.open("jobs?meta=case%3Dselect")
        await expect(member.page.locator("#live")).to_have_attribute("data-state", "live")
        await member.page.keyboard.press("j")
        await member.page.keyboard.press("x")
        await expect(member.page.locator("#selection-count")).to_have_text("1 selected")
        second = submit(sim_stack, member_key, model="orphan", metadata={"case": "select"})
        await expect(member.page.locator(f"#row-{second}")).to_be_visible()
        await expect(member.page.locator(f"#row-{first} input")).to_be_checked()
        await expect(member.page.locator(f"#row-{second} input")).not_to_be_checked()
        await member.page.locator(f"#row-{second} input").click()
        await member.page.get_by_role("button", name="Cancel").click()
        await expect(member.page.locator(".results h2")).to_have_text("Cancel: 2 of 2 jobs")
        await expect(member.page.locator("#selection-count")).to_have_text("Nothing selected")
        for job in (first, second):
            await expect(member.page.locator(f"#row-{job}")).to_contain_text("Cancelled")
        await member.page.locator(f"#row-{first} input").click()
        await member.page.get_by_role("button", name="Replay").click()
        await expect(member.page.locator(".results h2")).to_have_text("Replay: 1 of 1 job")
        await expect(member.page.locator("[data-row]")).to_have_count(3)
        await member.page.locator("[data-pick-all]").click()
        await member.page.get_by_role("button", name="Cancel").click()
        await expect(member.page.locator(".results h2")).to_have_text("Cancel: 3 of 3 jobs")

    async def test_a_selection_survives_that_newer_jobs_push_it_off_the_page(
        self, member: Visit, sim_stack: Stack, member_key: str
    ) -> None:
        page = member.page
        first = submit(sim_stack, member_key, model="orphan", metadata={"case": "busy"})
        await member.open("jobs?meta=case%3Dbusy")
        await expect(page.locator("#live")).to_have_attribute("data-state", "live")
        await page.locator(f"#row-{first} input").click()
        newer = [submit(sim_stack, member_key, model="orphan", metadata={"case": "busy"}) for _ in range(30)]
        await expect(page.locator("#selection-count")).to_have_text("1 selected, 1 no longer on this page")
        await page.locator(f"#row-{newer[-1]} input").click()
        await expect(page.locator("#selection-count")).to_have_text("2 selected, 1 no longer on this page")
        await page.get_by_role("button", name="Cancel").click()
        await expect(page.locator(".results h2")).to_have_text("Cancel: 2 of 2 jobs")
        await expect(page.locator("#selection-count")).to_have_text("Nothing selected")
        assert status_of(sim_stack, member_key, first) == "cancelled"
        await page.locator("[data-pick-all]").click()
        await expect(page.locator("#selection-count")).to_have_text("30 selected")
        await page.get_by_role("button", name="Clear").click()
        await expect(page.locator("#selection-count")).to_have_text("Nothing selected")
        await expect(page.get_by_role("button", name="Replay")).to_be_disabled()
        await page.locator("[data-pick-all]").click()
        await page.get_by_role("button", name="Cancel").click()
        await expect(page.locator(".results h2")).to_have_text("Cancel: 30 of 30 jobs")

    async def test_all_jobs_of_a_list_are_cancelled(self, member: Visit, sim_stack: Stack, member_key: str) -> None:
        jobs = [submit(sim_stack, member_key, model="orphan", metadata={"all": "of them"}) for _ in range(3)]
        other = submit(sim_stack, member_key, model="orphan")
        page = member.page
        await member.open("jobs?meta=all%3Dof%20them")
        tops = await page.locator(".filter-bar > *").evaluate_all(
            "parts => parts.slice(-2).map((part) => part.getBoundingClientRect().top)"
        )
        assert len(set(tops)) == 1, "the button with more filters is in line with the others"
        await page.locator(".selection-all").get_by_role("link", name="Cancel").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("Cancel 3 jobs?")
        assert await accessibility_faults(page) == []
        await dialog.get_by_role("button", name="Cancel the jobs").click()
        await expect(page.get_by_role("heading", name="Done")).to_be_visible()
        await expect(page.locator("#act-done")).to_have_text("3")
        assert {status_of(sim_stack, member_key, job) for job in jobs} == {"cancelled"}
        assert status_of(sim_stack, member_key, other) == "queued"
        await page.reload()
        await expect(page.locator("#act-done")).to_have_text("3")
        assert await accessibility_faults(page) == []
        cancel(sim_stack, member_key, other)
