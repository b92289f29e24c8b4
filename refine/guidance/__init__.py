"""What a picture's regions say about a coarse mask: proposals, their sources and cache, and the versions of SAM-SR.

The thesis (B. Sydor, Ukrainian Catholic University, 2023, section 3.3) puts Segment Anything before and into CRM in
seven ways: see the modules by version, and `refine.guidance.guide`.
"""

from refine.guidance.cache import Encoder
from refine.guidance.proposals import Proposal, Proposals, ProposalSource

__all__ = ["Encoder", "Proposal", "ProposalSource", "Proposals"]
