"""Decides which requests run, wait or are refused.

The package is synchronous: it has no clock, event loop or I/O, and gets the time as an argument.
"""

from llmserve.admission.build import POLICIES as POLICIES
from llmserve.admission.build import PolicySetup as PolicySetup
from llmserve.admission.build import build_admission as build_admission
from llmserve.admission.build import check_policy as check_policy
from llmserve.admission.build import separate as separate
from llmserve.admission.controller import AdmissionController as AdmissionController
from llmserve.admission.decisions import Decision as Decision
from llmserve.admission.lategate import LateGate as LateGate
from llmserve.admission.policies import FixedLimit as FixedLimit
from llmserve.admission.policies import Policy as Policy
from llmserve.admission.policies import Unlimited as Unlimited
from llmserve.admission.pool.policy import step_tokens as step_tokens
from llmserve.admission.prediction import EngineSample as EngineSample
from llmserve.admission.prediction import PolicyFigures as PolicyFigures
from llmserve.admission.prediction import Predictor as Predictor
from llmserve.admission.prediction import QueueState as QueueState
from llmserve.admission.prediction import Terms as Terms
from llmserve.admission.protocol import Admission as Admission
from llmserve.admission.protocol import AdmissionStatistics as AdmissionStatistics
from llmserve.admission.refusals import Refusal as Refusal
from llmserve.admission.refusals import Refused as Refused
from llmserve.admission.tenants import Tenants as Tenants
from llmserve.admission.ticket import Ticket as Ticket
from llmserve.admission.ticket import TicketState as TicketState
from llmserve.admission.ticket import wake as wake
from llmserve.admission.usage import UsageDelta as UsageDelta

__all__ = (
    "POLICIES", "Admission", "AdmissionController", "AdmissionStatistics", "Decision", "EngineSample", "FixedLimit", "LateGate", "Policy",
    "PolicyFigures", "PolicySetup", "Predictor", "QueueState", "Refusal", "Refused", "Tenants", "Terms", "Ticket", "TicketState",
    "Unlimited", "UsageDelta", "build_admission", "check_policy", "separate", "step_tokens", "wake",
)  # fmt: skip
