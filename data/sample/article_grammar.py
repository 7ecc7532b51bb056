"""The sentences that only full texts have; `grammar.py` explains the notation.

Every part is a pool from which `jats.py` draws a number of different sentences, after those that
the article shares with its abstract. `{cite}` becomes a reference.
"""

BODY = """
any intro
  {Disease} was first described in {place} [some decades ago|in a series of {4..30} patients]
      {cite}.
  Estimates of its frequency range from {3..20} to {30..95} per 100 000 {people} per year {cite}.
  The {organ} is involved in [nearly all|most|about two thirds of] patients {cite}.
  Most patients [recover slowly|need care for years], and a [minority|third] are admitted at least
      once a year {cite}.
  Its causes are [only partly known|a matter of debate], although {marker} has been implicated
      {cite}.
  The diagnosis rests on [history and examination|a combination of tests], which differ between
      regions {cite}.
  [Guidance|Advice] on the management of {disease} [is based on|draws on] small studies {cite}.
  In our region, {disease} leads to about {120..900} admissions to {area} units every year.
  Costs are [high|considerable], mainly because of [repeated visits|long admissions|lost work]
      {cite}.
  A survey from {other_place} found that only {20..60}% of {people} with {disease} were seen by a
      specialist within {3..12} weeks {cite}.
  Several groups have called for [better|larger|comparable] studies of {disease} {cite}.
  Animal work has shown that {marker} rises in the {organ} before [symptoms appear|tissue damage
      appears] {cite}.
  [Early|Late] recognition seems to [matter|be important], but [evidence|proof] is scarce {cite}.
  The quality of life of patients with {disease} is [reduced|impaired] in all domains {cite}.
  In [children|older people] the course may be [milder|more severe] than in [others|adults] {cite}.
  It is therefore of interest to know more about {subject}.
  These considerations led us to undertake the present work on {subject}.
  [Reports|Data] from {other_place} on {subject} concerned [few|selected] patients {cite}.
  Research on {subject} has been [hampered|limited] by [small numbers|short follow-up] {cite}.
  What is missing is a study of {subject} in [ordinary practice|unselected groups] {cite}.
  A pilot study at our institution encouraged us to pursue {subject}.
trial nursing surgery cohort genetics diagnostic imaging survey people
  The study was carried out in {sites} [teaching|district|regional] hospitals in {place} and
      {other_place} between {year} and {last_year}.
  Eligible were {people} with {disease} of at least {2..12} months' duration.
  We excluded [pregnant women|patients under {16..18} years] and those who could not give consent.
  Patients with [another|severe] disease of the {organ} were not eligible.
  Participants were recruited consecutively from {area} clinics.
  A research nurse [explained|introduced] the study and obtained written consent.
  All participants gave written informed consent before any study procedure.
  Clinical data were taken from [the records|a standard form] by two investigators.
  Socioeconomic data were obtained by interview with a questionnaire of {12..48} items.
  Body weight, height and blood pressure were recorded at the first visit.
  Blood samples were [frozen|stored] at \u221280 \u00b0C within {1..4} h of collection.
  Serum {marker} was measured with a commercial kit (coefficient of variation, {2..9}%).
  Visits took place at baseline and [every {4..8} weeks|at regular intervals].
  Missing visits were followed up by [telephone|letter].
lab micro kinetics review people
  The work was done in the central laboratory at {place} between {year} and {last_year}.
  All steps followed a [protocol|plan] that was written before the work began.
  Records were kept in duplicate, and entries were checked by a second person.
  Two investigators worked independently and compared their results every {2..6} weeks.
  Disagreements were [resolved by discussion|referred to a third investigator].
  Standard operating procedures were used throughout and are available on request.
  Reference material was obtained from the institute at {other_place}.
  Staff who made the measurements did not know the [origin|group] of the material.
  Deviations from the protocol were rare and are described where they matter.
lab people
  Mice were {8..14} weeks old, housed at {20..23} \u00b0C and given food and water freely.
  Animals were allocated to cages at random, and cages to positions on the rack.
  Tissue from the {organ} was fixed in 4% formaldehyde and embedded in paraffin.
  Sections of {3..6} \u03bcm were stained and scored by two observers.
  RNA was extracted with a column kit, and 1 \u03bcg was reverse transcribed.
micro people
  Isolates were stored at \u221280 \u00b0C in broth with {10..20}% glycerol.
  Plates were incubated at {35..37} \u00b0C in 5% CO<sub>2</sub> for {18..48} h.
  The inoculum was 5 \u00d7 10<sup>5</sup> colony-forming units/mL.
  Species were identified by [mass spectrometry|sequencing of ribosomal genes].
  Control strains with known values were included in each run.
kinetics people
  Volunteers were aged {18..22} to {40..55} years and had normal findings on examination.
  They fasted for {8..12} h before each dose and were observed for {24..48} h.
  Samples of {4..8} mL were drawn from an indwelling cannula.
  {Drug} in plasma was assayed by liquid chromatography with a limit of {0.1..0.9} ng/mL.
  Dosing was separated by a washout of {7..21} days.
review people
  Titles and abstracts were screened by two reviewers, and full texts were then obtained.
  We included studies in any language that reported at least {10..40} participants.
  Data were extracted with a form that had been piloted on {3..8} studies.
  Risk of bias was judged in [five|six|seven] domains.
  We wrote to {4..19} authors for missing data, and {2..4} replied.
any analysis
  Data are given as mean (SD) or as median and interquartile range, as appropriate.
  Categorical data were compared with the chi-squared test or with Fisher's exact test.
  Continuous variables were compared with Student's <i>t</i> test after inspection of their
      distribution.
  A two-sided <i>P</i> value below 0.05 was regarded as significant.
  No adjustment was made for multiple comparisons.
  Confidence intervals were calculated for all main estimates.
  Missing values were [imputed {5..20} times|left out of the analysis], and results were compared.
  We planned [one sensitivity analysis|two sensitivity analyses] without [outliers|incomplete
      records].
  With a power of {80..90}%, we would have detected a difference of {0.3..0.6} standard deviations.
  Analyses were done with standard software and repeated by a second analyst.
  Models were checked by [inspection of residuals|plots of observed against fitted values].
  The analysis plan was fixed before the data were seen.
trial nursing surgery cohort genetics diagnostic imaging survey results
  There were no important differences between the [centres|years] of the study.
  Results were [similar|the same] after exclusion of {3..9} participants with incomplete data.
  In a sensitivity analysis, estimates changed by less than {3..12}%.
  The findings did not differ between men and women (test for interaction, p = 0.{21..89}).
  There was no trend with age (correlation coefficient, {0.0..0.1}).
  Serum {marker} was available for {60..95}% of participants and did not alter the results.
  Participants from {place} were [slightly|somewhat] older than those from {other_place}.
  The median time from first symptom to enrolment was {5..30} months.
  Previous treatment had been given to {12..48}% of participants.
  Other diseases were recorded in {15..60}%, most often disease of the [kidney|heart|lung|joints].
  Protocol deviations were found in {2..9}% of records and were judged to be minor.
  Two observers agreed on the outcome in {90..98}% of a random sample of records.
lab micro kinetics review results
  Repeat measurements in {5..20}% of samples gave [the same|very similar] values.
  No [systematic|consistent] difference was seen between runs.
  The result did not depend on the [order|day] of measurement.
  Exclusion of the [highest|lowest] values left the estimate almost unchanged.
  The coefficient of variation was {2..6}% within runs and {7..14}% between runs.
  A sensitivity analysis led to the same conclusion.
  There were {2..8} missing values, which were not replaced.
  Values from {place} and {other_place} overlapped.
  The distribution was skewed to the right, and logarithms were therefore used.
any overview
  Table 1 and Figure 1 summarize the [main results|findings].
  The results are given in Table 1 and illustrated in Figure 1.
any restart
  In this study of {disease}, {finding}.
  The main result of this work is that {finding}.
  We found that {finding}.
any discussion
  These results should be seen in the light of what is known about {disease} {cite}.
  [Previous|Earlier] work on {subject} came to [similar|partly different] conclusions {cite}.
  A study from {other_place} reported [comparable|smaller|larger] differences in a [younger|mixed]
      group {cite}.
  [One|A possible] explanation is that {marker} [varies|changes] during the course of {disease}
      {cite}.
  Differences in [case mix|definitions|follow-up] may account for the [discrepancy|contrast] {cite}.
  [Chance|Selection] is an unlikely explanation of the findings, given their consistency.
  Mechanisms were not the subject of this study, but {marker} may be involved {cite}.
  The {organ} [adapts slowly|responds late] in {disease}, which [may matter|is relevant] here
      {cite}.
  Our definition of {disease} was [narrow|broad], as recommended {cite}.
  Similar patterns have been seen in other {area} diseases {cite}.
  [Reviews|Editorials] have pointed out how few data exist on {subject} {cite}.
  For [clinicians|those who plan services], the size of an effect matters more than its <i>P</i>
      value.
  An effect of the size found here would be [noticed by|relevant to] most patients {cite}.
  The [costs|consequences] of a change in practice were not examined.
  Whether the same holds for [children|other countries|primary care] is not known.
  Longer follow-up could show whether the findings last.
  We cannot say whether {marker} is a cause or a consequence of {disease}.
  The results agree with the view that {disease} is [not one entity|a heterogeneous condition]
      {cite}.
  It is reassuring that the sensitivity analysis gave the same answer.
  The observed variation between sites is [expected|in line with other reports] {cite}.
  [Several|Two] questions remain open, among them the [optimal timing|role of {marker}] {cite}.
  Work in [tissue|cells] from the {organ} would help to clarify this point {cite}.
  In {place}, referral is [free|limited], which may have [raised|lowered] the number of mild cases.
  Comparison with historical figures is difficult because coding has changed {cite}.
  The absence of an effect in one subgroup should not be over-interpreted {cite}.
  Others have used {marker} as a measure of activity, but its value is uncertain {cite}.
any earlier
  [Investigators|A group] from {place} [reported|observed] that {finding} {cite}.
  In work from {place}, carried out up to {last_year}, {finding} {cite}.
  With regard to {disease}, it has been [shown|reported] that {finding} {cite}.
  According to a [recent|previous] publication from {place}, {finding} {cite}.
  In another {area} disease, {disease}, {finding} {cite}.
any limits_lead
  This study has [some|several] limitations.
  Some limitations [should be mentioned|have to be borne in mind].
any limits
  The number of [observations|events] was modest, and intervals were [fairly wide|not narrow].
  We relied on routine records for part of the data.
  Some [variables|factors] of interest, such as diet, were not recorded.
  All centres were in one region, which limits generalization.
  Measurement error would tend to weaken associations.
  Strengths are the [complete data|uniform methods|clear definitions] and the independent review.
  Outcomes were assessed by staff who did not know the hypothesis.
  The period of observation was short in relation to the course of {disease}.
  The analysis was planned in advance, which reduces the risk of selective reporting.
any implications
  Future studies should [include|recruit] patients from [primary care|several countries].
  A registry of {disease} would [help|be useful].
  Meanwhile, decisions should rest on [individual judgement|discussion with patients].
  Agreement on a common set of outcomes in {disease} is needed.
  We suggest that {marker} be measured in [later|further] studies.
  The protocol and forms can be adapted for use elsewhere.
any caption
  [Distribution|Change over time] of the main outcome. Bars are 95% confidence intervals.
  Flow of [records|observations] through the study, with reasons for exclusion.
  Serum {marker} by group. Boxes are medians with interquartile ranges; whiskers are ranges.
  [Schematic|Diagram] of the study in {place} and {other_place}.
any table_title
  Main results of the study
  Counts and estimates by group
  Summary of the observations
any formula_text
  The required number of observations was obtained from the usual expression,
  Sample size was calculated as
  The number needed was derived from the formula
any ethics
  The protocol was approved by the committee at {place} (reference {100..999}/{year}).
  Approval was given by the review board of the University of {place}.
  The study was conducted in accordance with accepted principles and was approved in {place}.
any funding
  This work was supported by the {place} Foundation. The funder had no role in the study.
  No specific funding was received.
  Supported by a grant from the Research Council of {place} to the first author.
"""
