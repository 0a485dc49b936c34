"""The object store against answers as AWS gives them: regions, error codes, policies, pages, refusals that pass."""

import json
from itertools import chain, repeat

import pytest
from pydantic import SecretStr

from api.storage import MAX_DELETE, SINGLE_PUT_BYTES, ObjectMissing, ObjectStore, StoreError, StoreMisconfigured
from tests.support.aws import PAGE, USER_REQUESTS, answering, make_user, refusal, running_moto

REGION = "eu-central-1"
ALL_OF_S3 = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}


def policy(*statements):
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


@pytest.fixture(scope="module")
def user_of_aws(tmp_path_factory):
    with running_moto(tmp_path_factory.mktemp("moto"), free_requests=USER_REQUESTS) as url:
        yield url, make_user(url, policy(ALL_OF_S3))


@pytest.fixture
def aws_settings(user_of_aws, store_settings):
    """Settings for a bucket of the test's own, in a region that is not the first."""
    url, key = user_of_aws
    return store_settings.model_copy(
        update={
            "endpoint": url,
            "public_endpoint": None,
            "region": REGION,
            "access_key_id": SecretStr(key["AccessKeyId"]),
            "secret_access_key": SecretStr(key["SecretAccessKey"]),
        }
    )


@pytest.fixture
def aws(aws_settings):
    made = ObjectStore(aws_settings)
    made.ensure_bucket()
    return made


def at(store_settings, url, **fields):
    return ObjectStore(store_settings.model_copy(update={"endpoint": url, "public_endpoint": None, **fields}))


class TestMoto:
    @pytest.mark.parametrize("region", ["us-east-1", REGION])
    def test_a_bucket_is_made_in_its_region(self, aws_settings, region):
        made = ObjectStore(aws_settings.model_copy(update={"region": region, "bucket": f"{aws_settings.bucket}-x"}))
        made.ensure_bucket()
        made.ensure_bucket()
        made.ping()
        made._internal.delete_bucket(Bucket=f"{aws_settings.bucket}-x")

    def test_large_files_go_in_parts_and_come_back(self, aws, tmp_path):
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(bytes(range(256)) * (SINGLE_PUT_BYTES // 256 + 1))
        aws.put_file("big", source, "application/x-test")
        aws.get_file("big", target)
        assert target.read_bytes() == source.read_bytes()
        assert aws._internal.head_object(Bucket=aws._bucket, Key="big")["ETag"].endswith('-2"')
        assert aws.head("big").content_type == "application/x-test"

    def test_a_list_of_many_pages_is_read_to_its_end(self, aws):
        keys = [f"a/{number}" for number in range(2 * PAGE + 1)]
        for key in (*keys, "b"):
            aws.put_bytes(key, b"x", "text/plain")
        assert aws.keys("a/") == keys
        assert len(keys) < MAX_DELETE
        aws.delete(aws.keys())
        assert aws.keys() == []

    def test_copies_keep_their_type(self, aws):
        aws.put_bytes("source", b"hello", "text/x-test")
        aws.copy("source", "target")
        assert (aws.get_bytes("target"), aws.head("target").content_type) == (b"hello", "text/x-test")

    def test_what_is_not_there_is_told_apart(self, aws, aws_settings):
        for act in (lambda: aws.get_bytes("x"), lambda: aws.head("x"), lambda: aws.copy("x", "y")):
            with pytest.raises(ObjectMissing):
                act()
        with pytest.raises(ObjectMissing, match="NoSuchBucket"):
            ObjectStore(aws_settings.model_copy(update={"bucket": "not-there"})).get_bytes("x")

    @pytest.mark.parametrize(
        ("field", "code"), [("secret_access_key", "SignatureDoesNotMatch"), ("access_key_id", "InvalidAccessKeyId")]
    )
    def test_a_wrong_key_is_no_missing_object(self, aws, aws_settings, field, code):
        aws.put_bytes("a", b"x", "text/plain")
        wrong = ObjectStore(aws_settings.model_copy(update={field: SecretStr("wrong-all-along")}))
        with pytest.raises(StoreError, match=code) as refused:
            wrong.get_bytes("a")
        assert not isinstance(refused.value, ObjectMissing)

    def test_what_a_policy_of_the_bucket_forbids_is_no_missing_object(self, aws):
        aws.put_bytes("open", b"x", "text/plain")
        aws.put_bytes("shut", b"x", "text/plain")
        resource = f"arn:aws:s3:::{aws._bucket}/shut"
        deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": resource}
        aws._internal.put_bucket_policy(Bucket=aws._bucket, Policy=policy(deny))
        assert aws.get_bytes("open") == b"x"
        with pytest.raises(StoreError, match="Forbidden") as refused:
            aws.get_bytes("shut")
        assert not isinstance(refused.value, ObjectMissing)

    def test_the_self_test_refuses_a_store_that_serves_everybody(self, store_settings, tmp_path):
        with running_moto(tmp_path) as url:
            store = at(store_settings, url)
            store.ensure_bucket()
            with pytest.raises(StoreMisconfigured, match="without a valid signature; give it access keys"):
                store.self_test()
            assert store.keys() == []


class TestWrittenDown:
    """What AWS says on some days only."""

    def test_slow_down_is_tried_again(self, store_settings):
        answers = iter([refusal(503, "SlowDown"), refusal(503, "SlowDown"), (200, {}, b"hello")])
        with answering(lambda _: next(answers)) as url:
            assert at(store_settings, url).get_bytes("a") == b"hello"

    def test_slow_down_for_good_is_an_error_after_three_more_tries(self, store_settings):
        asked = []
        slow = answering(lambda request: asked.append(request.path) or refusal(503, "SlowDown"))
        with slow as url, pytest.raises(StoreError, match="SlowDown"):
            at(store_settings, url).put_bytes("a", b"x", "text/plain")
        assert len(asked) == 4

    def test_access_denied_is_not_tried_again(self, store_settings):
        asked = []
        shut = answering(lambda request: asked.append(request.path) or refusal(403, "AccessDenied"))
        with shut as url, pytest.raises(StoreError, match="AccessDenied") as refused:
            at(store_settings, url).get_bytes("a")
        assert not isinstance(refused.value, ObjectMissing)
        assert len(asked) == 1

    @pytest.mark.parametrize(
        ("status", "code"),
        [(307, "TemporaryRedirect"), (301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")],
    )
    def test_a_bucket_of_another_region_is_asked_with_a_signature_for_that(self, store_settings, status, code):
        seen = []

        def answer(request):
            seen.append(request.headers["Authorization"])
            if f"/{REGION}/s3/" in seen[-1]:
                return 200, {}, b"hello"
            return refusal(status, code, f"<Region>{REGION}</Region>", x_amz_bucket_region=REGION)

        with answering(answer) as url:
            assert at(store_settings, url).get_bytes("a") == b"hello"
        assert "/us-east-1/s3/" in seen[0]

    def test_a_signed_link_for_the_wrong_region_is_told_with_its_remedy(self, store_settings):
        def answer(request):
            return refusal(400, "AuthorizationQueryParametersError") if "X-Amz-Sign" in request.path else (204, {}, b"")

        with answering(answer) as url, pytest.raises(StoreMisconfigured, match="S3_REGION"):
            at(store_settings, url).self_test()

    def test_a_list_that_breaks_off_goes_on_where_it_did(self, store_settings):
        def page(key, more):
            said = f"<IsTruncated>{more}</IsTruncated><NextContinuationToken>next+/=</NextContinuationToken>"
            return 200, {}, f"<ListBucketResult>{said}<Contents><Key>{key}</Key></Contents></ListBucketResult>".encode()

        asked = []
        answers = chain([page("a", "true"), refusal(500, "InternalError"), page("b", "false")], repeat(None))
        with answering(lambda request: asked.append(request.path) or next(answers)) as url:
            assert at(store_settings, url).keys() == ["a", "b"]
        assert ["continuation-token=next%2B%2F%3D" in path for path in asked] == [False, True, True]

    def test_a_key_that_cannot_be_deleted_is_named(self, store_settings):
        body = b"<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code></Error></DeleteResult>"
        with answering(lambda _: (200, {}, body)) as url, pytest.raises(StoreError, match="cannot delete a"):
            at(store_settings, url).delete(["a", "b"])

    def test_a_copy_that_fails_after_it_was_accepted_is_an_error(self, store_settings):
        failed = refusal(200, "InternalError")
        with answering(lambda _: failed) as url, pytest.raises(StoreError, match="InternalError"):
            at(store_settings, url).copy("a", "b")
